"""Parse modprobe.d(5) into a `Config`.

`ordered` selects and sorts the files. The Config holds all directives, each kind in file order, and a `Problem` for
each invalid line, which is skipped (kmod: "ignoring bad line").

Texts are decoded by `kmodd.text.decode`, *without* newline translation: a line ends at LF, a CR is part of a word.
The user of a Config decides between several lines: the first match counts for install, remove, softdep and weakdep, all
matches for alias, options and blacklist.
"""

from __future__ import annotations

from itertools import chain

from kmodd.dataclass import dataclass
from kmodd.errors import Problem, SyntaxProblem, UnmatchedBracket, Where
from kmodd.names import ModuleName, underscores
from kmodd.text import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, Literal

    _Entry = tuple[
        Literal[
            "aliases", "blacklist", "options", "installs", "removes", "softdeps", "weakdeps", "problems", "remarks",
            "complaints",
        ],
        Any,
    ]  # fmt: skip
    """The field of Config that an entry belongs to, and the entry."""


@dataclass(frozen=True, slots=True)
class Extensions:
    """Deviations from kmod's behaviour, enabled one by one; all are off in drop-in mode."""

    blacklist_dependencies: bool = False
    """Do not load a blacklisted module as a dependency or softdep; the plan shows a skip."""
    softdeps_add_up: bool = False
    """Use all softdep lines of a module, not only the first (kmod issue 33)."""
    cmdline_blacklist_dashes: bool = False
    """Let `modprobe.blacklist=a-b` blacklist the module a_b; in kmod it never matches."""
    install_signal_is_failure: bool = False
    """Treat an install command killed by a signal as failed; kmod only checks the exit status."""
    softdep_keeps_install: bool = False
    """Run the install command of a module that also has a softdep (kmod issue 446)."""


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
    """A module name or an alias pattern, compared literally."""
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
    """`softdep PATTERN pre: … post: …`, with names as written."""

    pattern: str
    pre: tuple[str, ...]
    post: tuple[str, ...]
    at: Where
    text: str = ""
    """The text after the pattern, as written, for `dump`."""


@dataclass(frozen=True, slots=True)
class Weakdep:
    """`weakdep PATTERN MODULE…`, with names as written."""

    pattern: str
    modules: tuple[str, ...]
    at: Where


@dataclass(frozen=True, slots=True)
class Config:
    """The directives of modprobe.d and the kernel command line, each kind in file order."""

    aliases: tuple[Alias, ...] = ()
    blacklist: tuple[Blacklist, ...] = ()
    kernel_blacklist: tuple[Blacklist, ...] = ()
    """Names of `module_blacklist=` as written: modules that the kernel refuses. kmod does not read them."""
    options: tuple[Options, ...] = ()
    installs: tuple[Command, ...] = ()
    removes: tuple[Command, ...] = ()
    softdeps: tuple[Softdep, ...] = ()
    weakdeps: tuple[Weakdep, ...] = ()
    problems: tuple[Problem, ...] = ()
    remarks: tuple[Problem, ...] = ()
    """Parts of valid lines that kmod ignores without a message."""
    complaints: tuple[str, ...] = ()
    """Messages of kmod about invalid lines, for standard error, printed with -q too."""
    extensions: Extensions = DROP_IN


@dataclass(frozen=True, slots=True)
class ConfFile:
    """A configuration file: its path in messages, and its text."""

    path: str
    text: str


# ── selection of files ───────────────────────────────────────────────────────────────────────────────────────────────

DENY_FILE = "/etc/modprobe.d/00-kmodd-deny.conf"
"""The lines that `kmodd deny` writes, before those of other files: the first install line of a module counts."""
SUFFIXES = (".conf",)
"""Suffixes of configuration files; kmod 30 also reads `*.alias` (conf_files_filter_out)."""


def ordered(places: Iterable[tuple[str, Iterable[str]] | str], suffixes: tuple[str, ...] = SUFFIXES) -> tuple[str, ...]:
    """Return the paths of the files to parse, in order.

    places: highest priority first. A place is a directory with the base names of its files, of which those with one of
    `suffixes` and no leading dot are used; or the path of a file, which is always used: a file given with `-C`, and
    `modules.softdep` and `modules.weakdep` of the module directory, which kmod puts first.

    Of files with the same base name, only the one in the place with the highest priority is used, even if it is empty
    or a link to /dev/null, which masks the others. The files are sorted by base name (strcmp), across all places.
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
    return tuple(found[name] for name in sorted(found, key=encode))


# ── lines ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Line:
    """A logical line as in the file, with its backslashes, without the final LF."""

    number: int
    raw: str

    @property
    def last_number(self) -> int:
        """Number of the last physical line, which kmod's messages name."""
        return self.number + self.raw.count("\n")

    @property
    def text(self) -> str:
        r"""Text as kmod 34 reads it: `\` LF and a last `\` are dropped, `\x` is `x`, in comments too; NUL ends it."""
        text = "".join(read for _, read in _characters(self.raw)) if "\\" in self.raw else self.raw
        return text.partition("\0")[0]

    def place(self, index: int) -> tuple[int, int]:
        """Return two offsets in `raw`: of the physical line with character `index` of `text`, and of the character."""
        seen = 0
        for at, read in _characters(self.raw):
            seen += len(read)
            if seen > index:
                return self.raw.rfind("\n", 0, at) + 1, at
        return self.raw.rfind("\n") + 1, len(self.raw)


def _characters(raw: str) -> Iterator[tuple[int, str]]:
    """Yield the offset of each character or escape in `raw`, and the text that kmod reads for it."""
    at = 0
    while at < len(raw):
        if raw[at] != "\\":
            yield at, raw[at]
            at += 1
        else:
            escaped = raw[at + 1 : at + 2]
            yield at, "" if escaped == "\n" else escaped
            at += 2


def _lines(text: str) -> Iterator[_Line]:
    start, number = 0, 1
    while start < len(text):
        end = _end_of_line(text, start)
        line = _Line(number, text[start:end])
        yield line
        start, number = end + 1, line.last_number + 1


def _end_of_line(text: str, start: int) -> int:
    """Return the end of the logical line that begins at `start`: an LF after an even number of backslashes."""
    end = text.find("\n", start)
    while end > start and text[end - 1] == "\\":
        before = text[start:end]
        if (len(before) - len(before.rstrip("\\"))) % 2 == 0:
            break
        end = text.find("\n", end + 1)
    return len(text) if end < 0 else end


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────

_SPACES = "\t\n\v\f\r "
"""Separators of words in a softdep or weakdep: isspace(3) in the C locale. Other words end at a blank or tab."""
_TO_BLANKS = dict.fromkeys(map(ord, _SPACES), " ")


def bad_bracket(name: str) -> int:
    """Return the index of the first unmatched bracket in `name`, or its length if there is none."""
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


class _Tokenizer:
    """Splits a line into words, as strtok_r(3) does with the separators tab and blank.

    Methods raise SyntaxProblem at the end of the line; `expected` names the missing word.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        """Index after the last word and one separator."""
        self.start = 0
        """Index of the last word."""

    def word(self, expected: str) -> str:
        """Return the next word, and consume it with one separator."""
        rest = self.text[self.at :].lstrip("\t ")
        if not rest:
            raise SyntaxProblem(len(self.text), f"expected {expected}")
        word = rest.partition(" ")[0].partition("\t")[0]
        self.start = len(self.text) - len(rest)
        self.at = min(self.start + len(word) + 1, len(self.text))
        return word

    def name(self, expected: str) -> str:
        """Return the next word with `_` for `-` outside brackets. Raises SyntaxProblem for an unmatched bracket."""
        word = self.word(expected)
        try:
            return underscores(word)
        except UnmatchedBracket:
            raise SyntaxProblem(self.start + bad_bracket(word), f"expected {expected} with matching brackets") from None

    def rest(self, expected: str) -> str:
        """Return the rest of the line with its blanks; one blank is enough."""
        if self.at >= len(self.text):
            raise SyntaxProblem(len(self.text), f"expected {expected}")
        return self.text[self.at :]


def _split_list(text: str) -> list[str]:
    """Split the words of a softdep or weakdep as kmod_config_add_softdep does.

    There, exactly one surplus blank before the first word becomes part of the word, so that `pre:` is not recognized;
    two are ignored.
    """
    stripped = text.lstrip(_SPACES)
    words = stripped.translate(_TO_BLANKS).split(" ")
    words = [word for word in words if word]
    if words and len(text) - len(stripped) == 1:
        words[0] = text[0] + words[0]
    return words


def _sections(text: str) -> list[tuple[str, str]]:
    """Return section (`pre:`, `post:`) and word for each word of a softdep; words before any section are dropped."""
    section = ""
    found = []
    for word in _split_list(text):
        if word in ("pre:", "post:"):
            section = word
        elif section:
            found.append((section, word))
    return found


# ── directives ───────────────────────────────────────────────────────────────────────────────────────────────────────

_DIRECTIVES = ("alias", "blacklist", "install", "options", "remove", "softdep", "weakdep")
_EXPECTED = f"{', '.join(_DIRECTIVES[:-1])} or {_DIRECTIVES[-1]}"


def _directive(words: _Tokenizer, at: Where) -> _Entry:
    """Return the directive of one line. Raises SyntaxProblem."""
    match words.word(_EXPECTED):
        case "alias":
            pattern = words.name("an alias pattern")
            return "aliases", Alias(pattern, ModuleName(words.name("a module's name")), at)
        case "blacklist":
            return "blacklist", Blacklist(ModuleName(words.name("a module's name")), at)
        case "options":
            module = words.name("the name of a module or an alias")
            return "options", Options(module, words.rest("options").replace("\t", " "), at)
        case "install":
            return "installs", Command(words.name("a module's name"), words.rest("a shell command"), at)
        case "remove":
            return "removes", Command(words.name("a module's name"), words.rest("a shell command"), at)
        case "softdep":
            pattern = words.name("a module's name")
            text = words.rest("`pre:` or `post:` and modules")
            found = _sections(text)
            pre = tuple(word for section, word in found if section == "pre:")
            post = tuple(word for section, word in found if section == "post:")
            return "softdeps", Softdep(pattern, pre, post, at, text)
        case "weakdep":
            pattern = words.name("a module's name")
            return "weakdeps", Weakdep(pattern, tuple(_split_list(words.rest("modules"))), at)
        case "include" | "config" as word:
            raise SyntaxProblem(words.start, f"`{word}` is deprecated and no longer read", deprecated=True)
        case _:
            raise SyntaxProblem(words.start, f"expected {_EXPECTED}")


def _problem(file: str, line: _Line, index: int, expected: str, code: str = "syntax") -> Problem:
    """Return a Problem at character `index` of the text of `line`."""
    start, offset = line.place(index)
    at = Where(file, line.number + line.raw.count("\n", 0, start))
    return Problem(at, offset - start + 1, line.raw[start:].partition("\n")[0], expected, code)


def _complaint(file: str, line: _Line, word: str, bad: SyntaxProblem) -> str:
    """Return kmod's message about an invalid line. word: its first word."""
    if bad.deprecated:
        kmod = f"{file}: command {word} is deprecated and not parsed anymore"
    else:
        kmod = f"{file} line {line.last_number}: ignoring bad line starting with '{word}'"
    return f"libkmod: ERROR: kmod_config_parse: {kmod}"


def parse_file(file: ConfFile) -> Config:
    """Parse one file. Raises nothing; an invalid line is a Problem at the physical line of the error."""
    found: dict[str, list[Any]] = {}
    for kind, entry in _entries(file):
        found.setdefault(kind, []).append(entry)
    return Config(**{kind: tuple(entries) for kind, entries in found.items()}, extensions=DROP_IN)


def _entries(file: ConfFile) -> Iterator[_Entry]:
    has_nul = False
    for line in _lines(file.text):
        text = line.text
        if not has_nul and "\0" in line.raw:
            has_nul = True
            expected = "NUL bytes: the rest of the line is ignored; restore the file, which may be damaged"
            at = Where(file.path, line.number + line.raw[: line.raw.index("\0")].count("\n"))
            yield "remarks", Problem(at, 0, "", expected, "nul")
        swallowed = _swallowed(file.path, line) if "\n" in line.raw else None
        if swallowed:
            yield "remarks", swallowed
        # "lines starting with '#'": an indented comment is invalid. A line of blanks is empty.
        if text.startswith("#") or not text.strip("\t "):
            continue
        words = _Tokenizer(text)
        try:
            yield _directive(words, Where(file.path, line.number))
        except SyntaxProblem as bad:
            yield "problems", _problem(file.path, line, bad.index, bad.expected)
            yield "complaints", _complaint(file.path, line, _Tokenizer(text).word(""), bad)
            continue
        if not swallowed and (surplus := _surplus(file.path, line, words)):
            yield "remarks", surplus


# ── parts of valid lines without effect ──────────────────────────────────────────────────────────────────────────────


def _swallowed(file: str, line: _Line) -> Problem | None:
    """Return the first directive that a backslash at the end of the line above makes part of that line, if any.

    The command of an install or remove line may have any continuation.
    """
    first, *others = line.raw.split("\n")
    is_comment = first.startswith("#")
    if not is_comment and first.split(maxsplit=1)[:1] in (["install"], ["remove"]):
        return None
    for number, source in enumerate(others, line.number + 1):
        words = source.split(maxsplit=2)
        if len(words) > 1 and words[0] in _DIRECTIVES:
            what = "the comment" if is_comment else "the line"
            text = f"ignored: {what} above ends in a backslash, which makes this line a part of it"
            return Problem(Where(file, number), len(source) - len(source.lstrip()) + 1, source, text, "continued")
    return None


def _surplus(file: str, line: _Line, words: _Tokenizer) -> Problem | None:
    """Return the words behind the last one that counts, in an alias or blacklist line; a comment there does no harm."""
    kind = words.text.split(maxsplit=1)[0]
    rest = words.text[words.at :].strip(_SPACES)
    if kind not in ("alias", "blacklist") or not rest or rest.startswith("#"):
        return None
    index = words.text.index(rest, words.at)
    expected = f"ignored: expected one name for each {kind} line, or a comment"
    return _problem(file, line, index, expected, "surplus")


def parse(files: Iterable[ConfFile], extensions: Extensions = DROP_IN) -> Config:
    """Parse all files, sorted by `ordered`. The kernel command line follows them: `merge` it after the result."""
    return merge((parse_file(file) for file in files), extensions)


_PLACED = [name for name in Config.__match_args__ if name not in ("extensions", "complaints")]
"""Kinds of entries that have a place."""


def merge(parts: Iterable[Config], extensions: Extensions = DROP_IN) -> Config:
    """Return a Config with the directives of all parts, each kind in the order of the parts."""
    all_parts = tuple(parts)
    kinds = [name for name in Config.__match_args__ if name != "extensions"]
    merged = {kind: tuple(chain.from_iterable(getattr(part, kind) for part in all_parts)) for kind in kinds}
    return Config(**merged, extensions=extensions)


def files_of(config: Config) -> frozenset[str]:
    """Return the files that the directives of a Config come from."""
    return frozenset(entry.at.file for kind in _PLACED for entry in getattr(config, kind))


def without(config: Config, files: frozenset[str]) -> Config:
    """Return a Config without what comes from these files, and without kmod's messages, which quote them."""
    kept = {kind: tuple(each for each in getattr(config, kind) if each.at.file not in files) for kind in _PLACED}
    return Config(**kept, extensions=config.extensions)


# ── modprobe -c ──────────────────────────────────────────────────────────────────────────────────────────────────────


def dump(config: Config) -> str:
    """Return the configuration part of `modprobe -c`, in kmod's order and spelling; the indexes' part follows it."""
    lines = [f"blacklist {entry.module}" for entry in config.blacklist]
    lines += [f"install {entry.pattern} {entry.command}" for entry in config.installs]
    lines += [f"remove {entry.pattern} {entry.command}" for entry in config.removes]
    lines += [f"alias {entry.pattern} {entry.module}" for entry in config.aliases]
    lines += [f"options {entry.module} {entry.text}" for entry in config.options]
    lines += [f"softdep {entry.pattern} {_softdep_text(entry)}" for entry in config.softdeps]
    lines += [f"weakdep {entry.pattern} {' '.join(entry.modules)}" for entry in config.weakdeps]
    return "".join(line + "\n" for line in lines)


def _softdep_text(softdep: Softdep) -> str:
    """Format a softdep as kmod's softdep_to_char does.

    There is no blank before `post:`. A section runs from its first to its last word and includes words of the other
    section in between.
    """
    found = _sections(softdep.text)
    shown = ""
    for section in ("pre:", "post:"):
        places = [index for index, (where, _) in enumerate(found) if where == section]
        if places:
            shown += " ".join([section, *(word for _, word in found[places[0] : places[-1] + 1])])
    return shown
