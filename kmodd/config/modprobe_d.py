"""modprobe.d(5): texts in, `Config` out.

In: the texts of the files, in the order that `ordered` gives them. Out: everything they say, each kind in the order it
was read, and a `Problem` for every line that could not be used. A bad line stops nothing (kmod: "ignoring bad line").

Texts are decoded with `surrogateescape` and *without* newline translation: a line ends at LF, a CR belongs to the word.
Which of several lines wins is not decided here but by whoever looks: the first match for install, remove, softdep and
weakdep, all of them for alias, options and blacklist.
"""

from __future__ import annotations

from itertools import chain

from kmodd.dataclass import dataclass
from kmodd.errors import Problem, SyntaxProblem, UnmatchedBracket, Where
from kmodd.names import ModuleName, underscores

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True, slots=True)
class Extensions:
    """Where kmodd may do better than kmod: each wish has a word of its own, and all are off in drop-in mode."""

    blacklist_dependencies: bool = False
    """A blacklisted module is not loaded as a dependency or softdep either, and the plan says so."""
    softdeps_add_up: bool = False
    """All softdep lines of a module count, not only the first (kmod issue 33)."""
    cmdline_blacklist_dashes: bool = False
    """`modprobe.blacklist=a-b` blacklists the module a_b; in kmod it never matches."""
    install_signal_is_failure: bool = False
    """An install command killed by a signal has failed; kmod looks at the exit status alone."""
    softdep_keeps_install: bool = False
    """A softdep does not disable the install command of its module (kmod issue 446)."""


DROP_IN = Extensions()


@dataclass(frozen=True, slots=True)
class Alias:
    """`alias PATTERN MODULE`."""

    pattern: str
    module: ModuleName
    at: Where


@dataclass(frozen=True, slots=True)
class Blacklist:
    """`blacklist MODULE`, or one name of `modprobe.blacklist=`."""

    module: ModuleName
    at: Where


@dataclass(frozen=True, slots=True)
class Options:
    """`options MODULE TEXT`, or `MODULE.TEXT` on the kernel command line."""

    module: str
    """A module's name or the text of an alias pattern; compared literally."""
    text: str
    at: Where


@dataclass(frozen=True, slots=True)
class Command:
    """An `install` or `remove` line."""

    pattern: str
    command: str
    at: Where


@dataclass(frozen=True, slots=True)
class Softdep:
    """`softdep PATTERN pre: … post: …`; the names as written, dashes and all."""

    pattern: str
    pre: tuple[str, ...]
    post: tuple[str, ...]
    at: Where
    text: str = ""
    """All that follows the pattern, as written; `dump` needs it."""


@dataclass(frozen=True, slots=True)
class Weakdep:
    """`weakdep PATTERN MODULE…`; the names as written."""

    pattern: str
    modules: tuple[str, ...]
    at: Where


@dataclass(frozen=True, slots=True)
class Config:
    """All that modprobe.d and the kernel command line say, each kind in the order it was read."""

    aliases: tuple[Alias, ...] = ()
    blacklist: tuple[Blacklist, ...] = ()
    options: tuple[Options, ...] = ()
    installs: tuple[Command, ...] = ()
    removes: tuple[Command, ...] = ()
    softdeps: tuple[Softdep, ...] = ()
    weakdeps: tuple[Weakdep, ...] = ()
    problems: tuple[Problem, ...] = ()
    complaints: tuple[str, ...] = ()
    """What Debian 12's kmod writes to standard error about bad lines; -q does not silence it."""
    extensions: Extensions = DROP_IN


@dataclass(frozen=True, slots=True)
class ConfFile:
    """One file that takes part: the path by which messages name it, and its text."""

    path: str
    text: str


# ── which files ──────────────────────────────────────────────────────────────────────────────────────────────────────

SUFFIXES = (".conf", ".alias")
"""Debian 12's kmod reads `*.alias` too (conf_files_filter_out)."""


def ordered(places: Iterable[tuple[str, Iterable[str]] | str], suffixes: tuple[str, ...] = SUFFIXES) -> tuple[str, ...]:
    """The paths of the files to parse, in order.

    In: places, highest priority first. A place is a directory with the base names in it (those of directories left
    out), of which only `*.conf` that are not hidden take part; or the path of one file, which takes part whatever its
    name is: one given with `-C`, and the kernel directory's `modules.softdep` and `modules.weakdep`, put first by kmod.

    One base name is one file: the copy in the place with the highest priority wins, also where it is empty or a link
    to /dev/null; that is how a file is masked. The order is that of strcmp over the base names, across all places.
    """
    found: dict[str, str] = {}
    for place in places:
        if isinstance(place, str):
            found.setdefault(place.rpartition("/")[2], place)
            continue
        directory, names = place
        for name in names:
            if not name.startswith(".") and name.endswith(suffixes):
                found.setdefault(name, f"{directory}/{name}")
    return tuple(found[name] for name in sorted(found, key=lambda name: name.encode("utf-8", "surrogateescape")))


# ── lines ────────────────────────────────────────────────────────────────────────────────────────────────────────────

_DANGLING = "\udcff"
"""A backslash that is the last byte of the file makes kmod store the EOF of getc(3) as a byte (freadline_wrapped)."""


@dataclass(frozen=True, slots=True)
class _Line:
    """A logical line: as it stands in the file, with its backslashes, but without the LF that ends it."""

    number: int
    raw: str

    @property
    def last_number(self) -> int:
        """Number of its last physical line, the one that kmod names."""
        return self.number + self.raw.count("\n")

    @property
    def text(self) -> str:
        r"""As kmod sees it (freadline_wrapped): backslash LF vanishes, `\x` is `x`, a NUL ends it; in comments too."""
        text = "".join(read for _, read in _characters(self.raw)) if "\\" in self.raw else self.raw
        return text.partition("\0")[0]

    def place(self, index: int) -> tuple[int, int]:
        """Where character `index` of `text` stands: the offset in `raw` of its physical line, and its own."""
        seen = 0
        for at, read in _characters(self.raw):
            seen += len(read)
            if seen > index:
                return self.raw.rfind("\n", 0, at) + 1, at
        return self.raw.rfind("\n") + 1, len(self.raw)


def _characters(raw: str) -> Iterator[tuple[int, str]]:
    """Where each character stands, and what kmod reads there; a backslash takes the next one along."""
    at = 0
    while at < len(raw):
        if raw[at] != "\\":
            yield at, raw[at]
            at += 1
        else:
            taken = raw[at + 1 : at + 2]
            yield at, {"": _DANGLING, "\n": ""}.get(taken, taken)
            at += 2


def _lines(text: str) -> Iterator[_Line]:
    start, number = 0, 1
    while start < len(text):
        end = _end_of_line(text, start)
        line = _Line(number, text[start:end])
        yield line
        start, number = end + 1, line.last_number + 1


def _end_of_line(text: str, start: int) -> int:
    """Where the line ends that begins at `start`: at an LF with no backslash, or an even number of them, before it."""
    end = text.find("\n", start)
    while end > start and text[end - 1] == "\\":
        before = text[start:end]
        if (len(before) - len(before.rstrip("\\"))) % 2 == 0:
            break
        end = text.find("\n", end + 1)
    return len(text) if end < 0 else end


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────

_SPACES = "\t\n\v\f\r "
"""isspace(3) in the C locale: what separates the words of a softdep or weakdep; all others, blank and tab alone."""
_TO_BLANKS = dict.fromkeys(map(ord, _SPACES), " ")


def bad_bracket(name: str) -> int:
    """Index of the first bracket of `name` that has no partner; its length where all have."""
    at = 0
    while at < len(name):
        if name[at] == "]":
            return at
        if name[at] == "[":
            closing = name.find("]", at)
            if closing < 0:
                return at
            at = closing
        at += 1
    return at


class _Words:
    """The one tokenizer: takes words off the front of a line as strtok_r(3) does with the separators tab and blank."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        """Where the next word may begin."""
        self.start = 0
        """Where the last word began."""

    def word(self, expected: str) -> str:
        """The next word; one separator after it is used up with it."""
        rest = self.text[self.at :].lstrip("\t ")
        if not rest:
            raise SyntaxProblem(len(self.text), f"expected {expected}")
        word = rest.partition(" ")[0].partition("\t")[0]
        self.start = len(self.text) - len(rest)
        self.at = min(self.start + len(word) + 1, len(self.text))
        return word

    def name(self, expected: str) -> str:
        """The next word with its dashes turned outside brackets: "both are interchangeable"."""
        word = self.word(expected)
        try:
            return underscores(word)
        except UnmatchedBracket:
            raise SyntaxProblem(self.start + bad_bracket(word), f"expected {expected} with matching brackets") from None

    def rest(self, expected: str) -> str:
        """All that follows, blanks included; it may be nothing but a blank."""
        if self.at >= len(self.text):
            raise SyntaxProblem(len(self.text), f"expected {expected}")
        return self.text[self.at :]


def _listed(text: str) -> list[str]:
    """The words of a softdep or weakdep (kmod_config_add_softdep).

    Exactly one blank too many before the first word becomes part of it, so a `pre:` there is not seen; two do no harm.
    """
    stripped = text.lstrip(_SPACES)
    words = stripped.translate(_TO_BLANKS).split(" ")
    words = [word for word in words if word]
    if words and len(text) - len(stripped) == 1:
        words[0] = text[0] + words[0]
    return words


def _sections(text: str) -> list[tuple[str, str]]:
    """The words of a softdep, each with the section it stands in; words before any section are dropped."""
    section = ""
    found = []
    for word in _listed(text):
        if word in ("pre:", "post:"):
            section = word
        elif section:
            found.append((section, word))
    return found


# ── directives ───────────────────────────────────────────────────────────────────────────────────────────────────────

_DIRECTIVES = "alias, blacklist, install, options, remove, softdep or weakdep"


def _statement(words: _Words, at: Where) -> Config:
    """What one line says. Raises SyntaxProblem."""
    match words.word(_DIRECTIVES):
        case "alias":
            pattern = words.name("an alias pattern")
            return Config(aliases=(Alias(pattern, ModuleName(words.name("a module's name")), at),))
        case "blacklist":
            return Config(blacklist=(Blacklist(ModuleName(words.name("a module's name")), at),))
        case "options":
            module = words.name("the name of a module or an alias")
            return Config(options=(Options(module, words.rest("options").replace("\t", " "), at),))
        case "install":
            return Config(installs=(Command(words.name("a module's name"), words.rest("a shell command"), at),))
        case "remove":
            return Config(removes=(Command(words.name("a module's name"), words.rest("a shell command"), at),))
        case "softdep":
            pattern = words.name("a module's name")
            text = words.rest("`pre:` or `post:` and modules")
            found = _sections(text)
            pre = tuple(word for section, word in found if section == "pre:")
            post = tuple(word for section, word in found if section == "post:")
            return Config(softdeps=(Softdep(pattern, pre, post, at, text),))
        case "weakdep":
            pattern = words.name("a module's name")
            return Config(weakdeps=(Weakdep(pattern, tuple(_listed(words.rest("modules"))), at),))
        case "include" | "config" as word:
            raise SyntaxProblem(words.start, f"`{word}` is deprecated and not read any more", deprecated=True)
        case _:
            raise SyntaxProblem(words.start, f"expected {_DIRECTIVES}")


def _refused(file: str, line: _Line, word: str, bad: SyntaxProblem) -> Config:
    """A line that does not count: our words for it, and kmod's."""
    start, offset = line.place(bad.index)
    at = Where(file, line.number + line.raw.count("\n", 0, start))
    source = line.raw[start:].partition("\n")[0]
    if bad.deprecated:
        kmod = f"708 kmod_config_parse: {file}: command {word} is deprecated and not parsed anymore"
    else:
        kmod = f"712 kmod_config_parse: {file} line {line.last_number}: ignoring bad line starting with '{word}'"
    return Config(
        problems=(Problem(at, offset - start + 1, source, bad.expected),),
        complaints=(f"libkmod: ERROR ../libkmod/libkmod-config.c:{kmod}",),
    )


def parse_file(file: ConfFile) -> Config:
    """Read one file. Never raises: what cannot be used is a Problem, at the physical line where it goes wrong."""
    return merge(_parts(file))


def _parts(file: ConfFile) -> Iterator[Config]:
    for line in _lines(file.text):
        text = line.text
        # "lines starting with '#'": an indented one is a bad line. Nothing but blanks is an empty line.
        if text.startswith("#") or not text.strip("\t "):
            continue
        words = _Words(text)
        try:
            yield _statement(words, Where(file.path, line.number))
        except SyntaxProblem as bad:
            yield _refused(file.path, line, _Words(text).word(""), bad)


def parse(files: Iterable[ConfFile], extensions: Extensions = DROP_IN) -> Config:
    """Read all files, in the order of `ordered`. The kernel command line comes after them: `merge` it behind."""
    return merge((parse_file(file) for file in files), extensions)


def merge(parts: Iterable[Config], extensions: Extensions = DROP_IN) -> Config:
    """One Config that says what the parts say, in their order, each kind by itself."""
    all_parts = tuple(parts)
    kinds = [name for name in Config.__match_args__ if name != "extensions"]
    said = {kind: tuple(chain.from_iterable(getattr(part, kind) for part in all_parts)) for kind in kinds}
    return Config(**said, extensions=extensions)


# ── modprobe -c ──────────────────────────────────────────────────────────────────────────────────────────────────────


def dump(config: Config) -> str:
    """The first part of `modprobe -c`: every directive in kmod 30's order and spelling, without the indexes' half."""
    lines = [f"blacklist {entry.module}" for entry in config.blacklist]
    lines += [f"install {entry.pattern} {entry.command}" for entry in config.installs]
    lines += [f"remove {entry.pattern} {entry.command}" for entry in config.removes]
    lines += [f"alias {entry.pattern} {entry.module}" for entry in config.aliases]
    lines += [f"options {entry.module} {entry.text}" for entry in config.options]
    lines += [f"softdep {entry.pattern} {_softdep_text(entry)}" for entry in config.softdeps]
    lines += [f"weakdep {entry.pattern} {' '.join(entry.modules)}" for entry in config.weakdeps]
    return "".join(line + "\n" for line in lines)


def _softdep_text(softdep: Softdep) -> str:
    """As softdep_to_char prints it: no blank before `post:`; words of the other section in between are named."""
    found = _sections(softdep.text)
    shown = ""
    for section in ("pre:", "post:"):
        places = [index for index, (where, _) in enumerate(found) if where == section]
        if places:
            shown += " ".join([section, *(word for _, word in found[places[0] : places[-1] + 1])])
    return shown
