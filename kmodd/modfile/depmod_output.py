"""Build the content of every index file that depmod writes, in its order, with complaints.

People and kmodd read the text files, kmod reads the `.bin` files. All are byte-identical to those of kmod 34.
"""

from __future__ import annotations

import re
from itertools import chain

from kmodd.errors import ParseError, UnmatchedBracket
from kmodd.index import bin_writer, text_files
from kmodd.modfile.depmod_graph import SYMBOL_BUCKETS, Complaint, Index, Unusable, bucket, raw_lines
from kmodd.modfile.elf import strings
from kmodd.names import module_of_path, underscores
from kmodd.text import decode, encode, unsigned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

File = tuple[str, bytes]
"""Base name and content."""
Files = tuple[list[File], list[Complaint]]
"""Files to write, and complaints about the modules."""

TEXTS = ("modules.dep", "modules.alias", "modules.softdep", "modules.weakdep", "modules.symbols", "modules.devname")
BINARIES = (
    "modules.dep.bin", "modules.alias.bin", "modules.symbols.bin", "modules.builtin.bin", "modules.builtin.alias.bin",
)  # fmt: skip


# ── texts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def texts(index: Index, dep_lines: list[bytes], symbols: list[bytes]) -> Files:
    """Return the files of TEXTS. dep_lines, symbols: results of the functions of these names."""
    devnames, complaints = _devnames(index)
    contents = (
        b"".join([line + b"\n" for line in dep_lines]),
        encode(text_files.ALIAS_HEAD) + b"".join(_lines(index, b"alias", [each.aliases for each in index.facts])),
        encode(text_files.SOFTDEP_HEAD) + b"".join(_lines(index, b"softdep", [each.softdeps for each in index.facts])),
        encode(text_files.WEAKDEP_HEAD) + b"".join(_lines(index, b"weakdep", [each.weakdeps for each in index.facts])),
        _symbols_text(index, symbols),
        devnames,
    )
    return list(zip(TEXTS, contents, strict=True)), complaints


def _lines(index: Index, word: bytes, blobs: Iterable[bytes]) -> Iterator[bytes]:
    """Yield, per module, its lines `WORD MODULE VALUE`; for aliases `alias VALUE MODULE`."""
    for member, blob in zip(index.members, blobs, strict=True):
        if not blob:
            continue
        name = encode(member.name)
        before, after = (b"alias ", b" " + name) if word == b"alias" else (word + b" " + name + b" ", b"")
        yield before + blob[:-1].replace(b"\0", after + b"\n" + before) + after + b"\n"


def symbols(index: Index, buckets: Iterable[bytes] | None = None) -> list[bytes]:
    """Return the symbols that modules own, in the order of kmod's hash table.

    buckets: `depmod_graph.export_buckets` of each module, if known; ignored if symbols have a prefix.
    """
    if buckets is None or index.prefix:
        ranked = [(bucket(name, SYMBOL_BUCKETS), name) for name, owner in index.owners.items() if owner >= 0]
    else:
        names = chain.from_iterable(strings(each.exports) for each in index.facts)
        numbers = memoryview(b"".join(buckets)).cast("H")
        ranked = list(dict.fromkeys(zip(numbers, names, strict=True)))
    ranked.sort()
    return [name for _, name in ranked]


def _symbols_text(index: Index, names: list[bytes]) -> bytes:
    modules = [encode(member.name) for member in index.members]
    owners = index.owners
    lines = [b"alias symbol:" + name + b" " + modules[owners[name]] + b"\n" for name in names]
    return encode(text_files.SYMBOLS_HEAD) + b"".join(lines)


_NODE = re.compile(rb"(char|block)-major-\s*([+-]?\d+)-\s*([+-]?\d+)")


def _devnames(index: Index) -> tuple[bytes, list[Complaint]]:
    """Return modules.devname: per module its device node and numbers, and complaints about missing numbers.

    Reading stops at the first alias by which both a `devname:` and a `char-major-` or `block-major-` alias are known.
    """
    lines = []
    complaints = []
    for member, facts in zip(index.members, index.facts, strict=True):
        if b"devname:" not in facts.aliases:
            continue
        node = numbers = None
        for alias in strings(facts.aliases):
            if alias.startswith(b"devname:"):
                node = alias.removeprefix(b"devname:")
            elif match := _NODE.match(alias):
                major, minor = map(unsigned, match.groups()[1:])
                numbers = b"%c%d:%d" % (match[1][:1], major, minor)
            if node is not None and numbers is not None:
                break
        if node is None:
            continue
        if numbers is not None:
            lines.append(b"%s %s %s\n" % (encode(member.name), node, numbers))
        else:
            what = f"has devname ({decode(node)}) but lacks major and minor information. Ignoring."
            complaints.append(Complaint("ERROR", f"Module '{member.name}' {what}"))
    return encode(text_files.DEVNAME_HEAD) * bool(lines) + b"".join(lines), complaints


# ── binaries ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def binaries(index: Index, dep_lines: list[bytes], symbols: list[bytes], warn_duplicates: bool) -> Files:
    """Return modules.dep.bin, modules.alias.bin and modules.symbols.bin. Raises Unusable for a key that is not ASCII.

    dep_lines, symbols: results of the functions of these names. warn_duplicates: complain about repeated aliases.
    """
    modules = [encode(member.name) for member in index.members]
    places = range(len(modules))
    aliases, complaints = _alias_rows(index, warn_duplicates)
    rows: tuple[Iterable[bin_writer.Row], ...] = (
        zip(modules, places, dep_lines, strict=True),
        aliases,
        [(b"symbol:" + name, index.owners[name], modules[index.owners[name]]) for name in symbols],
    )
    return [(name, _built(each)) for name, each in zip(BINARIES, rows, strict=False)], complaints


def _built(rows: Iterable[bin_writer.Row]) -> bytes:
    try:
        return bin_writer.build(rows)
    except ParseError as error:
        key = str(error)
        bad = next(byte for byte in encode(key) if byte > 127)
        what = f"bad character '{decode(bytes((bad,)))}'=0x{bad:x}"
        text = f"Module index: {what} - only 7-bit ASCII is supported:\n{key}"
        raise Unusable((Complaint("FATAL", text),)) from None


def _alias_rows(index: Index, warn_duplicates: bool) -> tuple[list[bin_writer.Row], list[Complaint]]:
    """Return a row for each normalised alias; omit aliases with unmatched brackets."""
    rows: list[bin_writer.Row] = []
    complaints: list[Complaint] = []
    for place, (member, facts) in enumerate(zip(index.members, index.facts, strict=True)):
        blob = facts.aliases
        if not blob:
            continue
        name = encode(member.name)
        if b"[" not in blob and b"]" not in blob:
            keys = strings(blob.replace(b"-", b"_"))
        else:
            keys = list(_normalised(strings(blob), complaints))
        rows += [(key, place, name) for key in keys]
        if warn_duplicates:
            seen = set()
            for key in keys:
                if key in seen:
                    complaints.append(Complaint("WARNING", f"duplicate module alias:\n{decode(key)} {member.name}"))
                seen.add(key)
    return rows, complaints


def _normalised(aliases: Iterable[bytes], complaints: list[Complaint]) -> Iterator[bytes]:
    for alias in aliases:
        if b"-" not in alias and alias.count(b"[") == alias.count(b"]") == 0:
            yield alias
            continue
        try:
            yield encode(underscores(decode(alias)))
        except UnmatchedBracket:
            complaints.append(Complaint("WARNING", f"Unmatched bracket in {decode(alias)}"))


def builtin_names(data: bytes) -> Files:
    """Return modules.builtin.bin for the content of modules.builtin. Raises Unusable for a name that is not ASCII."""
    rows = []
    complaints = []
    for line in raw_lines(data):
        if line[:1].isalpha():
            rows.append((encode(module_of_path(decode(line.rstrip(b"\n")))), 0, b""))
        else:
            complaints.append(Complaint("ERROR", f"Invalid modules.builtin line: {decode(line)}"))
    return [("modules.builtin.bin", _built(rows))], complaints


def builtin_aliases(data: bytes) -> Files:
    """Return modules.builtin.alias.bin for modules.builtin.modinfo: strings `MODULE.KEY=VALUE`, each ending in NUL.

    Raises Unusable for an alias that is not ASCII. The strings are read as a stream, as in kmod: a string without `=`
    consumes the following one too.
    """
    rows = []
    complaints: list[Complaint] = []
    at = 0
    while at < len(data):
        module, at = _up_to(b".", data, at)
        if not module:
            continue
        key, at = _up_to(b"=", data, at)
        alias, at = _up_to(b"\0", data, at)
        if key == b"alias" and alias:
            rows += [(each, 0, module) for each in _normalised([alias], complaints)]
    return [("modules.builtin.alias.bin", _built(rows))], complaints


def _up_to(end: bytes, data: bytes, at: int) -> tuple[bytes, int]:
    """Return the bytes from `at` to `end`, empty if a NUL precedes `end`; and the offset after either."""
    place, nul = data.find(end, at), data.find(b"\0", at)
    if place >= 0 and (nul < 0 or place <= nul):
        return data[at:place], place + 1
    return b"", nul + 1 if nul >= 0 else len(data)


def in_order(files: Iterable[File]) -> list[File]:
    """Return the files in the order in which to rename them into place.

    The files that kmod reads come first, and paths and dependencies before the aliases that refer to them; texts last.
    """
    contents = dict(files)
    first = (*BINARIES, "modules.softdep", "modules.weakdep")
    return [(name, contents[name]) for name in dict.fromkeys((*first, *TEXTS)) if name in contents]
