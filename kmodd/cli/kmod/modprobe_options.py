"""Parser of modprobe's command line and of $MODPROBE_OPTIONS."""

from __future__ import annotations

from kmodd.cli.kmod.messages import ERR, FEATURES, VERSION, WARNING, Messages, Stop
from kmodd.cli.options import OptionError, Options
from kmodd.dataclass import dataclass, field

HELP = """\
Usage:
\tmodprobe [options] [-i] [-b] modulename
\tmodprobe [options] -a [-i] [-b] modulename [modulename...]
\tmodprobe [options] -r [-i] modulename
\tmodprobe [options] -r -a [-i] modulename [modulename...]
\tmodprobe [options] -c
\tmodprobe [options] --dump-modversions filename
Management Options:
\t-a, --all                   Consider every non-argument to
\t                            be a module name to be inserted
\t                            or removed (-r)
\t-r, --remove                Remove modules instead of inserting
\t    --remove-dependencies   Deprecated: use --remove-holders
\t    --remove-holders        Also remove module holders (use together with -r)
\t-w, --wait=<MSEC>           When removing a module, wait up to MSEC for
\t                            module's refcount to become 0 so it can be
\t                            removed (use together with -r)
\t    --first-time            Fail if module already inserted or removed
\t-i, --ignore-install        Ignore install commands
\t-i, --ignore-remove         Ignore remove commands
\t-b, --use-blacklist         Apply blacklist to resolved alias.
\t-f, --force                 Force module insertion or removal.
\t                            implies --force-modversions and
\t                            --force-vermagic
\t    --force-modversion      Ignore module's version
\t    --force-vermagic        Ignore module's version magic

Query Options:
\t-R, --resolve-alias         Only lookup and print alias and exit
\t-D, --show-depends          Only print module dependencies and exit
\t-c, --showconfig            Print out known configuration and exit
\t-c, --show-config           Same as --showconfig
\t    --show-modversions      Dump module symbol version and exit
\t    --dump-modversions      Same as --show-modversions
\t    --show-exports          Only print module exported symbol versions and exit

General Options:
\t-n, --dry-run               Do not execute operations, just print out
\t-n, --show                  Same as --dry-run
\t-C, --config=FILE           Use FILE instead of default search paths
\t-d, --dirname=DIR           Use DIR as filesystem root for /lib/modules
\t-S, --set-version=VERSION   Use VERSION instead of `uname -r`
\t-s, --syslog                print to syslog, not stderr
\t-q, --quiet                 disable messages
\t-v, --verbose               enables more messages
\t-V, --version               show version
\t-h, --help                  show this help"""
"""Output of `modprobe -h` of kmod 34.2."""

_SHORT = "arw:RibfDcnC:d:S:sqvVh"
LONG = {
    "all": "a",
    "remove": "r",
    "remove-dependencies": "remove-holders",
    "remove-holders": "remove-holders",
    "wait": "w:",
    "resolve-alias": "R",
    "show-alias": "R",
    "first-time": "first-time",
    "ignore-install": "i",
    "ignore-remove": "i",
    "use-blacklist": "b",
    "force": "f",
    "force-modversion": "force-modversion",
    "force-vermagic": "force-vermagic",
    "show-depends": "D",
    "showconfig": "c",
    "show-config": "c",
    "show-modversions": "show-modversions",
    "dump-modversions": "show-modversions",
    "show-exports": "show-exports",
    "dry-run": "n",
    "show": "n",
    "config": "C:",
    "dirname": "d:",
    "set-version": "S:",
    "root": "root:",
    "syslog": "s",
    "quiet": "q",
    "verbose": "v",
    "version": "V",
    "help": "h",
    "json": "json",
    "no-daemon": "no-daemon",
}

_OWN = ("show-alias", "root", "json", "no-daemon")


@dataclass(slots=True)
class ModprobeOptions:
    """Parsed command line of modprobe."""

    operands: list[str] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)
    """Codes of options without a value."""
    config_paths: list[str] = field(default_factory=list)
    root: str = ""
    module_dir: str | None = None
    release: str | None = None
    wait_msec: int = 0
    verbose: int = WARNING
    """Highest level of messages that are printed."""
    handed_down: list[str] = field(default_factory=list)
    """Options appended to MODPROBE_OPTIONS in the environment of install and remove commands."""

    @property
    def is_shown(self) -> bool:
        """Whether actions are printed (-n alone prints nothing)."""
        return "D" in self.flags or self.verbose > WARNING

    @property
    def is_dry(self) -> bool:
        """Whether steps are not carried out."""
        return bool(self.flags & {"D", "n"})


def read_options(words: list[str], messages: Messages) -> ModprobeOptions:
    """Parse the command line. Raises Stop for -V, -h, and after a message for invalid options."""
    options = ModprobeOptions()
    parser = Options(words, _SHORT, LONG, _OWN)
    try:
        for code, value in parser:
            match code:
                case "C":
                    options.config_paths.append(value)
                    options.handed_down += ["-C", value]
                case "d":
                    options.module_dir = value
                case "S":
                    options.release = value
                case "root":
                    options.root = value
                case "q":
                    options.verbose = 0
                    options.handed_down.append("-q")
                case "v":
                    options.verbose += 1
                    options.handed_down.append("-v")
                case "s":
                    options.flags.add("s")
                    options.handed_down.append("-s")
                case "w":
                    options.wait_msec = _number(value, messages)
                case "remove-holders":
                    options.flags |= {code, "r"}
                case "V":
                    messages.show(f"{VERSION}\n{FEATURES}")
                    raise Stop(0)
                case "h":
                    messages.show(HELP)
                    raise Stop(0)
                case _:
                    options.flags.add(code)
    except OptionError as error:
        messages.say(f"modprobe: {error}")
        raise Stop(1) from None
    options.operands = parser.operands
    return options


def _number(text: str, messages: Messages) -> int:
    """Parse a number as strtoul(3) with base 0. Raises Stop after a message if text is left over."""
    digits = text.lstrip(" \t\n\v\f\r").lstrip("+-").lower()
    is_hex = digits.startswith("0x")
    try:
        return int(digits.removeprefix("0x"), 16 if is_hex else 8 if digits.startswith("0") else 10)
    except ValueError:
        messages.log(ERR, f"unexpected wait value '{text}'.")
        raise Stop(1) from None


def words_of_environment(text: str | None) -> list[str]:
    """Split $MODPROBE_OPTIONS at single blanks outside quotes, without escapes (kmod prepend_options_from_env)."""
    words: list[str] = []
    word = ""
    quote, quote_is_first = "", False
    for char in text or "":
        if quote:
            if char != quote:
                word += char
                continue
            quote = ""
            if quote_is_first:  # a word that starts with a quote ends at the closing one, even without a blank
                words.append(word)
                word = ""
        elif char == " ":
            words.append(word)
            word = ""
        elif char in "\"'":
            quote, quote_is_first = char, not word
        else:
            word += char
    if quote:
        word = quote + word if quote_is_first else word
    return [*words, word] if word else words
