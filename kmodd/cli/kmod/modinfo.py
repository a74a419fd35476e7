"""`modinfo`: output and exit status of kmod 34.2, and `--json`; docs/COMPAT.md lists differences."""

from __future__ import annotations

import errno
import os
import stat
import sys

from kmodd.cli.options import OptionError, Options
from kmodd.dataclass import dataclass, field
from kmodd.errors import UnmatchedBracket
from kmodd.host.module_reader import is_module_file, read_module
from kmodd.modfile import modinfo
from kmodd.modfile.elf import ElfError
from kmodd.modfile.modinfo import Field, Info
from kmodd.names import module_of_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from kmodd.errors import Problem
    from kmodd.index.catalog import Snapshot

_SHORT = "adlpn0mF:k:b:Vh"
_LONG = {
    "author": "a",
    "description": "d",
    "license": "l",
    "parameters": "p",
    "filename": "n",
    "null": "0",
    "modname": "m",
    "field": "F:",
    "set-version": "k:",
    "basedir": "b:",
    "root": "root:",
    "json": "json",
    "version": "V",
    "help": "h",
}
_FIELDS = {"a": "author", "d": "description", "l": "license", "p": "parm", "n": "filename"}

HELP = """\
Usage:
\tmodinfo [options] <modulename|filename> [args]
Options:
\t-a, --author                Print only 'author'
\t-d, --description           Print only 'description'
\t-l, --license               Print only 'license'
\t-p, --parameters            Print only 'parm'
\t-n, --filename              Print only 'filename'
\t-0, --null                  Use \\0 instead of \\n
\t-m, --modname               Handle argument as module name instead of alias or filename
\t-F, --field=FIELD           Print only provided FIELD
\t-k, --set-version=VERSION   Use VERSION instead of `uname -r`
\t-b, --basedir=DIR           Use DIR as filesystem root for /lib/modules
\t-V, --version               Show version
\t-h, --help                  Show this help
"""


@dataclass(slots=True)
class _ModinfoOptions:
    """Parsed command line of modinfo."""

    names: list[str] = field(default_factory=list)
    only: bytes | None = None
    """The only field to print."""
    end: bytes = b"\n"
    """Terminator of each line."""
    by_name: bool = False
    json: bool = False
    release: str | None = None
    base: str | None = None
    root: str = ""


@dataclass(frozen=True, slots=True)
class _Module:
    """A module to print; `path` is None if it is builtin."""

    name: str
    path: str | None
    real: str = ""
    """The path to open."""


def main(argv: list[str]) -> int:
    """Run modinfo and return 0 or 1.

    argv: the command line without the program's name.
    """
    options = _read_options(argv)
    if isinstance(options, int):
        return options
    if not options.names:
        _error("missing module or filename.")
        return 1
    finder = _Finder(options)
    status = 0
    for name in options.names:
        try:
            modules = finder.find(name)
            kind = "name " if options.by_name else ""
        except UnmatchedBracket:
            modules, kind = [], "alias "
        if not modules:
            _error(f"Module {kind}{name} not found.")
            status = 1
        for module in modules:
            if not _print_module(module, options, finder):
                status = 1
    for problem in finder.problems:
        _error(str(problem))
    return status


def _read_options(argv: list[str]) -> _ModinfoOptions | int:
    """Parse the command line; return the options, or the exit status after -V, -h or an error."""
    options = _ModinfoOptions()
    parser = Options(argv, _SHORT, _LONG, ("root", "json"))
    try:
        for code, value in parser:
            match code:
                case "a" | "d" | "l" | "p" | "n":
                    options.only = _FIELDS[code].encode()
                case "F":
                    options.only = os.fsencode(value)
                case "0":
                    options.end = b"\0"
                case "m":
                    options.by_name = True
                case "json":
                    options.json = True
                case "k":
                    options.release = value
                case "b":
                    options.base = value
                case "root":
                    options.root = value
                case "V":
                    from kmodd.cli.kmod.messages import FEATURES, VERSION  # only here: 0.2 ms

                    print(f"{VERSION}\n{FEATURES}")
                    return 0
                case _:
                    print(HELP, end="")
                    return 0
    except OptionError as error:
        sys.stderr.write(f"modinfo: {error}\n")
        return 1
    options.names = parser.operands
    return options


def _error(text: str) -> None:
    sys.stdout.flush()
    sys.stderr.buffer.write(os.fsencode(f"modinfo: ERROR: {text}\n"))
    sys.stderr.flush()


# ── which modules ────────────────────────────────────────────────────────────────────────────────────────────────────


class _Finder:
    """Resolver of arguments; reads the indexes only if a name requires them."""

    def __init__(self, options: _ModinfoOptions) -> None:
        self._options = options
        self._read: Snapshot | None = None

    def find(self, name: str) -> list[_Module]:
        """Return the module of a file, or all modules that match a name. Raises UnmatchedBracket."""
        if not self._options.by_name and self._is_file(name):
            path = name if name.startswith("/") else f"{os.getcwd()}/{name}"
            return [_Module(module_of_path(path), path, self._real(name))]
        from kmodd.index.catalog import Hit, lookup
        from kmodd.names import module_name

        snapshot = self._snapshot()
        if not self._options.by_name:
            hits: Iterable[Hit] = lookup(name, snapshot)
            return [self._module(hit.module, hit.builtin) for hit in hits]
        catalog = snapshot.catalog
        name = module_name(name.partition(".")[0])
        if ":" not in name and catalog.dep(name) is not None:
            return [self._module(name, False)]
        if catalog.is_builtin(name):
            return [self._module(name, True)]
        return [self._module(match.module, True) for match in catalog.builtin_aliases(name)[:1]]

    @property
    def problems(self) -> Iterable[Problem]:
        """The damaged indexes among those that were read."""
        return self._read.catalog.problems if self._read else ()

    def builtin_fields(self, name: str) -> tuple[Field, ...] | None:
        """Return a module's fields in modules.builtin.modinfo, or None if there is no such file."""
        from kmodd.host.regular_files import read_file

        data = read_file(f"{self._directory()}/modules.builtin.modinfo")
        if data is None:
            return None
        start = os.fsencode(name) + b"."
        return tuple(modinfo.field(text[len(start) :]) for text in data.split(b"\0") if text.startswith(start))

    def _is_file(self, name: str) -> bool:
        try:
            is_regular = stat.S_ISREG(os.stat(self._real(name)).st_mode)
        except (OSError, ValueError):
            return False
        return is_regular and is_module_file(name)

    def _module(self, name: str, builtin: bool) -> _Module:
        entry = None if builtin else self._snapshot().catalog.dep(name)
        path = entry.path if entry and entry.path else None
        return _Module(name, path, self._real(path or ""))

    def _real(self, path: str) -> str:
        """Return the path to open: --root is the prefix of absolute paths only."""
        return self._options.root + path if path.startswith("/") else path

    def _directory(self) -> str:
        from kmodd.host.tree import Tree

        options = self._options
        tree = Tree(options.root, options.release, options.base, ())
        return tree.real(tree.directory)

    def _snapshot(self) -> Snapshot:
        """Return the indexes without configuration, which modinfo does not read."""
        if self._read is None:
            from kmodd.host.tree import Tree

            options = self._options
            tree = Tree(options.root, options.release, options.base, ())
            self._read = tree.quick_snapshot(like_kmod=True)
        return self._read


# ── printing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _print_module(module: _Module, options: _ModinfoOptions, finder: _Finder) -> bool:
    """Print a module; return whether its fields could be read."""
    if options.json:
        return _print_json(module, options, finder)
    out = bytearray()
    only, end = options.only, options.end
    name = os.fsencode(module.name)
    path = b"(builtin)" if module.path is None else os.fsencode(module.path)
    if module.path is None and only is None:
        out += b"%-16s%s%s" % (b"name:", name, end)
    elif module.path is None and only == b"name":
        out += name + end
    if only is None:
        out += b"%-16s%s%s" % (b"filename:", path, end)
    elif only == b"filename":
        _print(out + path + end)
        return True
    info = _info(module, options, finder)
    if info is None:
        _print(out)
        return False
    if only is not None:
        out += _one_field(info, only, end)
    else:
        out += _all_fields(info, end)
    _print(out)
    return True


def _print(data: bytes | bytearray) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(data)


def _info(module: _Module, options: _ModinfoOptions, finder: _Finder) -> Info | None:
    """Return the information of a module, or None after an error message."""
    try:
        if module.path is not None:
            return modinfo.info(read_module(module.real), with_build_id=options.json)
        fields = finder.builtin_fields(module.name)
        if fields is None:  # builds of old kernels produce no such file
            return Info(())
        if fields:
            return Info(fields)
        reason = os.strerror(38)
    except ElfError as error:
        reason = os.strerror(error.number)
    except OSError as error:
        reason = os.strerror(error.errno or 5)
        if error.errno in (errno.ENOSYS, errno.EFBIG):
            reason += f" ({error.strerror})"
    _error(f"could not get modinfo from '{module.name}': {reason}")
    return None


def _one_field(info: Info, only: bytes, end: bytes) -> bytes:
    """Return the values of one field (-F), each with the terminator."""
    if only != b"parm":
        return b"".join(value + end for key, value in info.all_fields() if key == only)
    return b"".join(
        parameter.name + b":" + _words(parameter.description, parameter.type, b" ") + end
        for parameter in _parameters(info)
    )


def _all_fields(info: Info, end: bytes) -> bytes:
    out = bytearray()
    for key, value in info.all_fields():
        if key in (b"parm", b"parmtype"):
            continue
        if end == b"\0":
            out += key + b"=" + value + end
        else:
            out += b"%-16s%s%s" % (key + b":", value, end)
    for parameter in _parameters(info):
        words = _words(parameter.description, parameter.type, b"")
        out += b"%-16s%s:%s%s" % (b"parm:", parameter.name, words, end)
    return bytes(out)


def _parameters(info: Info) -> Iterable[modinfo.Parameter]:
    """Return all parameters in kmod's order, the last one first; print errors for invalid fields."""
    found, bad = modinfo.parameters(info.fields)
    for key, value in bad:
        _error(f"Found invalid \"{os.fsdecode(key)}={os.fsdecode(value)}\": missing ':'")
    return reversed(found.values())


def _words(description: bytes | None, kind: bytes | None, blank: bytes) -> bytes:
    """Return the text after a parameter's name; with -F, `blank` and parentheses precede a type without description."""
    if description is None:
        return blank + b"(%s)" % kind if blank else kind or b""
    return description if kind is None else b"%s (%s)" % (description, kind)


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _print_json(module: _Module, options: _ModinfoOptions, finder: _Finder) -> bool:
    """Print one JSON object per line; -F and its short forms omit the other fields."""
    import json

    info = _info(module, options, finder)
    if info is None:
        return False
    fields: dict[str, list[str]] = {}
    for key, value in info.fields:
        if key not in (b"parm", b"parmtype") and options.only in (None, key):
            fields.setdefault(_text(key), []).append(_text(value))
    found: dict[str, object] = {"name": module.name, "filename": module.path, "builtin": module.path is None}
    found["fields"] = fields
    if options.only in (None, b"parm"):
        found["parameters"] = [
            {
                "name": _text(each.name),
                "type": None if each.type is None else _text(each.type),
                "description": None if each.description is None else _text(each.description),
            }
            for each in modinfo.parameters(info.fields)[0].values()
        ]
    if options.only is None:
        signed = info.signature
        found["build_id"] = info.build_id.hex() or None
        found["signature"] = signed and {
            "kind": _text(signed.kind),
            "signer": _text(signed.signer),
            "key": signed.key.hex(),
            "hash": _text(signed.hash),
            "signature": signed.signature.hex(),
        }
    _print(json.dumps(found).encode() + b"\n")
    return True


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
