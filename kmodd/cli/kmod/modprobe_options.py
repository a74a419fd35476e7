"""modprobe's options: the command line and $MODPROBE_OPTIONS in, `ModprobeOptions` out."""

from __future__ import annotations

from kmodd.cli.kmod.messages import ERR, WARNING, Messages, Stop
from kmodd.cli.options import OptionError, Options
from kmodd.dataclass import dataclass, field

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


@dataclass(slots=True)
class ModprobeOptions:
    """What the options said."""

    operands: list[str] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)
    """Codes of the options without a value."""
    config_paths: list[str] = field(default_factory=list)
    root: str = ""
    module_dir: str | None = None
    release: str | None = None
    wait_msec: int = 0
    verbose: int = WARNING
    handed_down: list[str] = field(default_factory=list)
    """Options that a command gets in MODPROBE_OPTIONS behind what stands there."""

    @property
    def is_shown(self) -> bool:
        """Whether actions are printed (kmod 30: -n alone prints nothing)."""
        return "D" in self.flags or self.verbose > WARNING

    @property
    def is_dry(self) -> bool:
        """Whether nothing is done."""
        return bool(self.flags & {"D", "n"})


def read_settings(words: list[str], messages: Messages) -> ModprobeOptions:
    """Read the command line. Ends the program for -V, -h, and what is wrong."""
    settings = ModprobeOptions()
    options = Options(words, _SHORT, LONG)
    try:
        for code, value in options:
            match code:
                case "C":
                    settings.config_paths.append(value)
                    settings.handed_down += ["-C", value]
                case "d":
                    settings.module_dir = value
                case "S":
                    settings.release = value
                case "root":
                    settings.root = value
                case "q":
                    settings.verbose = 0
                    settings.handed_down.append("-q")
                case "v":
                    settings.verbose += 1
                    settings.handed_down.append("-v")
                case "s":
                    settings.flags.add("s")
                    settings.handed_down.append("-s")
                case "w":
                    settings.wait_msec = _number(value, messages)
                case "V":
                    from kmodd.cli.kmod.modprobe_help import FEATURES

                    messages.show(f"kmod version 30\n{FEATURES}")
                    raise Stop(0)
                case "h":
                    from kmodd.cli.kmod.modprobe_help import HELP

                    messages.show(HELP)
                    raise Stop(0)
                case _:
                    settings.flags.add(code)
    except OptionError as error:
        messages.say(f"modprobe: {error}")
        raise Stop(1) from None
    settings.operands = options.operands
    return settings


def _number(text: str, messages: Messages) -> int:
    """What strtoul(3) makes of the text with base 0. Ends the program where that is not all of it."""
    digits = text.lstrip(" \t\n\v\f\r").lstrip("+-").lower()
    is_hex = digits.startswith("0x")
    try:
        return int(digits.removeprefix("0x"), 16 if is_hex else 8 if digits.startswith("0") else 10)
    except ValueError:
        messages.log(ERR, f"unexpected wait value '{text}'.")
        raise Stop(1) from None


def words_of_environment(text: str | None) -> list[str]:
    """MODPROBE_OPTIONS as words (prepend_options_from_env): single blanks part them, quotes group, nothing escapes."""
    words: list[str] = []
    word = ""
    quote, quote_is_first = "", False
    for char in text or "":
        if quote:
            if char != quote:
                word += char
                continue
            quote = ""
            if quote_is_first:  # a word that began with its quote ends with it, also without a blank
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
