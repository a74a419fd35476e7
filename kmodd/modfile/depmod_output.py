"""The bytes of every file that depmod writes, in the order in which it writes them; what is wrong comes with them.

Texts are for people and for kmodd; the `.bin` twins are what kmod reads. All are byte for byte those of kmod 30;
modules.weakdep, which it does not know, is that of kmod 34.
"""

from __future__ import annotations

import re
from itertools import chain

from kmodd.errors import ParseError, UnmatchedBracket
from kmodd.index import bin_writer, text_files
from kmodd.modfile.depmod_graph import SYMBOL_BUCKETS, Complaint, Index, Unusable, bucket, raw_lines
from kmodd.modfile.elf import strings
from kmodd.names import module_of_path, underscores
from kmodd.text import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

File = tuple[str, bytes]
"""Base name and content."""
Files = tuple[list[File], list[Complaint]]

TEXTS = ("modules.dep", "modules.alias", "modules.softdep", "modules.weakdep", "modules.symbols", "modules.devname")
BINARIES = (
    "modules.dep.bin", "modules.alias.bin", "modules.symbols.bin", "modules.builtin.bin", "modules.builtin.alias.bin",
)  # fmt: skip


# ── texts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def texts(index: Index, dep_lines: list[bytes], symbols: list[bytes]) -> Files:
    """All texts; `dep_lines` and `symbols` come from the functions of these names."""
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
    """`WORD MODULE VALUE` for each value, for aliases `alias VALUE MODULE`; the lines of a module at a time."""
    for member, blob in zip(index.members, blobs, strict=True):
        if not blob:
            continue
        name = encode(member.name)
        before, after = (b"alias ", b" " + name) if word == b"alias" else (word + b" " + name + b" ", b"")
        yield before + blob[:-1].replace(b"\0", after + b"\n" + before) + after + b"\n"


def symbols(index: Index, buckets: Iterable[bytes] | None = None) -> list[bytes]:
    """The symbols that modules own, in the order of kmod's hash table.

    `buckets`: of each module's exports, as `depmod.export_buckets` gives them; of no use with a prefix.
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
    """modules.devname: of each module's aliases the `devname:`, and the numbers, that stand first together."""
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
                major, minor = (int(number) & 0xFFFFFFFF for number in match.groups()[1:])
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
    """The `.bin` twins of modules.dep, .alias and .symbols. Raises Unusable for a key that is not 7-bit text."""
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
    """Each alias with its dashes turned; those with unmatched brackets are left out."""
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
    """modules.builtin.bin, out of modules.builtin. Raises Unusable."""
    rows = []
    complaints = []
    for line in raw_lines(data):
        if line[:1].isalpha():
            rows.append((encode(module_of_path(decode(line.rstrip(b"\n")))), 0, b""))
        else:
            complaints.append(Complaint("ERROR", f"Invalid modules.builtin line: {decode(line)}"))
    return [("modules.builtin.bin", _built(rows))], complaints


def builtin_aliases(data: bytes) -> Files:
    """modules.builtin.alias.bin, out of the strings `MODULE.KEY=VALUE` NUL of modules.builtin.modinfo. Raises Unusable.

    Read as a stream, as kmod does: a string without its `=` takes the next one along.
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
    """What stands from `at` to the byte `end`, nothing where a NUL comes first; and the place behind either."""
    place, nul = data.find(end, at), data.find(b"\0", at)
    if place >= 0 and (nul < 0 or place <= nul):
        return data[at:place], place + 1
    return b"", nul + 1 if nul >= 0 else len(data)


def in_order(files: Iterable[File]) -> list[File]:
    """The files in the order in which they are to be put into place: first those that kmod reads.

    Of these, where a module is and what it needs comes before the aliases that lead to it. The texts are last.
    """
    contents = dict(files)
    first = (*BINARIES, "modules.softdep", "modules.weakdep")
    return [(name, contents[name]) for name in dict.fromkeys((*first, *TEXTS)) if name in contents]
