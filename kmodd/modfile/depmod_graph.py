"""Compute the order of modules and their dependencies from their `Facts`, as depmod does.

The steps are `arranged` (order of the modules), `resolve` (owners of symbols, direct dependencies) and `dep_lines`;
`depmod_output` follows. The order has two effects: a module's position is its priority in the `.bin` files, and if two
modules export the same symbol, the later one owns it. Where kmod's order results from its hash table (modules not
listed in modules.order, lines of modules.symbols), `bucket` reproduces it.
"""

from __future__ import annotations

import re
from array import array
from struct import unpack

from kmodd.dataclass import dataclass
from kmodd.errors import KmoddError
from kmodd.modfile.elf import Facts, Versions, strings
from kmodd.names import ModuleName, module_of_path
from kmodd.text import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

NAME_BUCKETS, SYMBOL_BUCKETS = 512, 2048
"""Number of buckets in kmod's hash tables of modules and of symbols (kmod depmod_init)."""
MAX_LINE = 4095
"""Maximum bytes that kmod reads as one line of modules.order."""


@dataclass(frozen=True, slots=True)
class Complaint:
    """A message of depmod."""

    level: str
    """FATAL, ERROR or WARNING."""
    text: str


class Unusable(KmoddError):
    """No index can be built, and depmod writes none; `complaints` has the reasons."""

    def __init__(self, complaints: Iterable[Complaint]) -> None:
        self.complaints = tuple(complaints)
        super().__init__("; ".join(complaint.text for complaint in self.complaints))


@dataclass(frozen=True, slots=True)
class Member:
    """One module of the index."""

    name: ModuleName
    path: str
    """Absolute path, for messages."""
    shown: str
    """Path as written to the indexes: relative to the module directory, absolute if the file is outside of it."""
    listed_as: str
    """Path as modules.order lists it, ending in `.ko`; empty if the file is outside the module directory."""


def member(path: str, directory: str) -> Member:
    """Return the module of the file `path` for the index of `directory` (kmod depmod_module_add)."""
    name = module_of_path(path)
    if not path.startswith(directory + "/"):
        return Member(name, path, path, "")
    shown = path[len(directory) + 1 :]
    return Member(name, path, shown, shown[: shown.rfind("/") + 1 + len(name) + len(".ko")])


# ── order ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def arranged(members: Sequence[Member], order: bytes | None, file: str) -> tuple[list[Member], tuple[Complaint, ...]]:
    """Return the modules in depmod's order, and complaints about modules.order.

    Listed modules come first, in the order of their first lines; the rest follow in the order of kmod's hash table.
    order: content of modules.order, None without such a file. An unterminated or overlong line voids the whole file.
    file: its path, for complaints.
    """
    places: dict[str, int] = {}
    complaints: tuple[Complaint, ...] = ()
    if order:
        lines = order.split(b"\n")
        bad = next((number for number, line in enumerate(lines, 1) if len(line) >= MAX_LINE), 0)
        bad = bad or (len(lines) if lines[-1] else 0)
        if bad:
            complaints = (Complaint("ERROR", f"{file}:{bad} corrupted line misses '\\n'"),)
        else:
            for number, line in enumerate(filter(None, lines)):
                places.setdefault(decode(line), number)
    listed = [each for each in members if each.listed_as in places]
    listed.sort(key=lambda each: places[each.listed_as])
    others = [each for each in members if each.listed_as not in places]
    others.sort(key=lambda each: (bucket(encode(each.name), NAME_BUCKETS), encode(each.name)))
    return listed + others, complaints


def bucket(key: bytes, buckets: int) -> int:
    """Return the bucket of `key` in kmod's hash table: Paul Hsieh's SuperFastHash on a little-endian machine.

    buckets: number of buckets, a power of two.
    kmod lists a table bucket by bucket, and the keys of a bucket in byte order (kmod shared/hash.c).
    """
    length = len(key)
    value = length
    halves = unpack(f"<{length >> 1}H", key[: length & ~1])
    for index in range(0, (length & ~3) >> 1, 2):
        value += halves[index]
        value = ((value << 16) ^ (halves[index + 1] << 11) ^ value) & 0xFFFFFFFF
        value += value >> 11
    if length & 2:
        value = (value + halves[-1]) & 0xFFFFFFFF
        if length & 1:
            value ^= value << 16
            value ^= _signed(key[-1]) << 18
            value &= 0xFFFFFFFF
            value += value >> 11
        else:
            value = (value ^ (value << 11)) & 0xFFFFFFFF
            value += value >> 17
    elif length & 1:
        value = (value + _signed(key[-1])) & 0xFFFFFFFF
        value = (value ^ (value << 10)) & 0xFFFFFFFF
        value += value >> 1
    value = (value ^ (value << 3)) & 0xFFFFFFFF
    value = (value + (value >> 5)) & 0xFFFFFFFF
    value = (value ^ (value << 4)) & 0xFFFFFFFF
    value = (value + (value >> 17)) & 0xFFFFFFFF
    value = (value ^ (value << 25)) & 0xFFFFFFFF
    return (value + (value >> 6)) & (buckets - 1)


def _signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def export_buckets(facts: Facts) -> bytes:
    """Return the buckets of a module's exports in kmod's symbol table: 16 bits each, in the machine's byte order."""
    return array("H", [bucket(name, SYMBOL_BUCKETS) for name in strings(facts.exports)]).tobytes()


# ── symbols of the kernel ────────────────────────────────────────────────────────────────────────────────────────────

FAKE_SYMBOLS = (b"__this_module", b"_GLOBAL_OFFSET_TABLE_", b"TOC.")
"""Symbols that no image exports and every module may need (kmod depmod_add_fake_syms)."""


def symvers(data: bytes, file: str, prefix: bytes) -> tuple[dict[bytes, int], tuple[Complaint, ...]]:
    """Parse Module.symvers. Return the symbols of vmlinux with their CRCs, and complaints about invalid lines.

    file: its path, for complaints. prefix: the architecture's symbol prefix, which is stripped.
    """
    found: dict[bytes, int] = {}
    complaints = []
    for number, line in enumerate(data.split(b"\n"), 1):
        match [word for word in re.split(b"[ \t]", line + b"\n") if word]:
            case [crc, symbol, b"vmlinux", *_]:
                hexadecimal = re.fullmatch(rb"(?:0[xX])?([0-9a-fA-F]+)", crc)
                if hexadecimal is None:
                    # kmod appends a stale errno, left by an earlier lookup of an index
                    text = f"{file}:{number} Invalid symbol version {decode(crc)}: No such file or directory"
                    complaints.append(Complaint("ERROR", text))
                else:
                    found[_without(prefix, symbol)] = int(hexadecimal[1], 16)
    return found | dict.fromkeys(FAKE_SYMBOLS, 0), tuple(complaints)


def system_map(data: bytes, file: str, prefix: bytes) -> tuple[dict[bytes, int], tuple[Complaint, ...]]:
    """Parse System.map. Return the symbols that have a `__ksymtab_` entry, all with CRC 0, and complaints.

    file: its path, for complaints. prefix: the architecture's symbol prefix, which is stripped.
    """
    found: dict[bytes, int] = {}
    complaints = []
    for number, line in enumerate(raw_lines(data), 1):
        words = line.split(b" ", 2)
        if len(words) < 3:
            complaints.append(Complaint("ERROR", f"{file}:{number}: invalid line: {decode(line)}"))
            continue
        name = _without(prefix, words[2].rstrip(b"\n"))
        if name.startswith(b"__ksymtab_"):
            found[name.removeprefix(b"__ksymtab_")] = 0
    return found | dict.fromkeys(FAKE_SYMBOLS, 0), tuple(complaints)


def raw_lines(data: bytes) -> list[bytes]:
    """Split data into lines that include their LF, as fgets(3) does; no other byte ends a line."""
    return re.findall(rb"[^\n]*\n|[^\n]+", data)


def _without(prefix: bytes, name: bytes) -> bytes:
    """Strip the architecture's symbol prefix, which has at most one byte."""
    return name[1:] if prefix and name.startswith(prefix) else name


# ── dependencies ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Index:
    """Input of all index files. The lists are parallel, with one entry per module."""

    members: Sequence[Member]
    facts: Sequence[Facts]
    owners: Mapping[bytes, int]
    """Symbol → position of the module that owns it; -1: the kernel."""
    edges: Sequence[tuple[int, ...]]
    """Positions of each module's direct dependencies, in the order of its first symbol from each."""
    prefix: bytes = b""
    """The architecture's symbol prefix."""


def resolve(members: Sequence[Member], facts: Sequence[Facts], kernel: Iterable[bytes], prefix: bytes) -> Index:
    """Return the index: the owner of each symbol, and the direct dependencies of each module.

    kernel: symbols of the kernel. prefix: the architecture's symbol prefix.
    """
    owners: dict[bytes, int] = dict.fromkeys(kernel, -1)
    for place, each in enumerate(facts):
        if each.exports:
            names = strings(each.exports)
            owners.update(dict.fromkeys([_without(prefix, name) for name in names] if prefix else names, place))
    edges = []
    owner_of = owners.get
    for each in facts:
        names = strings(each.needs)
        if prefix or each.needs.startswith(b".") or b"\0." in each.needs:
            names = [_looked_up(name, prefix) for name in names]
        found = dict.fromkeys(map(owner_of, names))
        edges.append(tuple([owner for owner in found if owner is not None and owner >= 0]))
    return Index(members, facts, owners, edges, prefix)


def _looked_up(name: bytes, prefix: bytes) -> bytes:
    """The name under which a needed symbol is looked up: `.foo` of PPC64 is `foo`."""
    return _without(prefix, name[1:] if name.startswith(b".") else name)


def needs_shown(index: Index) -> Iterator[str]:
    """Yield the dependency lines of `depmod -v`: for each direct dependency, its first needed symbol."""
    for place, each in enumerate(index.facts):
        seen = set()
        for name in strings(each.needs):
            owner = index.owners.get(_looked_up(name, index.prefix), -1)
            if owner >= 0 and owner not in seen:
                seen.add(owner)
                path, other = index.members[place].path, index.members[owner].path
                yield f'{path} needs "{decode(_looked_up(name, index.prefix))}": {other}'


def unsatisfied(
    index: Index, versions: Sequence[Versions], kernel: Mapping[bytes, int], check_crc: bool
) -> Iterator[Complaint]:
    """Yield the warnings of `depmod -e`: symbols without an owner and, for `-E`, symbols whose CRCs differ.

    Weak symbols are exempt. versions: parallel to the modules. kernel: the kernel's symbols with their CRCs.
    check_crc: whether to compare CRCs.
    """
    crcs = dict(kernel)
    for each, version in zip(index.facts, versions, strict=True):
        names = [_without(index.prefix, name) for name in strings(each.exports)]
        crcs.update(zip(names, version.exports, strict=False))
    for member_, each, version in zip(index.members, index.facts, versions, strict=True):
        for name, crc, weak in zip(strings(each.needs), version.needs, version.weak, strict=False):
            wanted = _looked_up(name, index.prefix)
            if weak:
                continue
            if wanted not in index.owners:
                yield Complaint("WARNING", f"{member_.path} needs unknown symbol {decode(name)}")
            elif check_crc and crcs.get(wanted) != crc:
                yield Complaint("WARNING", f"{member_.path} disagrees about version of symbol {decode(name)}")


def numbered(index: Index) -> list[int]:
    """Return the topological number of each module; users precede their dependencies. Raises Unusable for a cycle.

    modules.dep lists dependencies by this number (kmod depmod_calculate_dependencies).
    """
    users = [0] * len(index.members)
    for needed in index.edges:
        for place in needed:
            users[place] += 1
    waiting = [place for place, count in enumerate(users) if not count]
    numbers = [-1] * len(users)
    done = 0
    while waiting:
        place = waiting.pop()
        numbers[place] = done
        done += 1
        for needed_place in index.edges[place]:
            users[needed_place] -= 1
            if not users[needed_place]:
                waiting.append(needed_place)
    if done < len(users):
        raise Unusable(_cycles(index, [place for place, count in enumerate(users) if count]))
    return numbers


_MAX_STEPS = 20_000
"""Limit of the search for cycles, in visited modules."""


def _cycles(index: Index, roots: list[int]) -> Iterator[Complaint]:
    """Yield a complaint for each path from a remaining module back to itself (kmod depmod_report_cycles_from_root).

    kmod keeps the remaining modules in a ring and continues after the one removed last. In a dense cycle the number of
    paths explodes, and kmod fails an assertion or does not terminate; here _MAX_STEPS limits the search.
    """
    visited: set[int] = set()
    in_cycles: set[int] = set()
    ring = list(roots)
    steps = _MAX_STEPS
    while ring:
        root = ring.pop(0)
        stack: list[tuple[int, tuple[int, ...]]] = [(root, ())]
        while stack and steps:
            steps -= 1
            place, way = stack.pop()
            if place == root and place in visited:
                yield Complaint("ERROR", "Cycle detected: " + " -> ".join(index.members[p].name for p in (*way, place)))
                in_cycles.update(way)
                for each in way:
                    ring = _without_member(ring, each)
                continue
            if place in way:
                continue  # a cycle that does not include the root; kmod would never leave it
            visited.add(place)
            if not index.edges[place]:
                ring = _without_member(ring, place)
            stack += [(needed, (*way, place)) for needed in index.edges[place]]
    yield Complaint("ERROR", f"Found {len(in_cycles)} modules in dependency cycles!")


def _without_member(ring: list[int], place: int) -> list[int]:
    """Remove `place` from the ring, and rotate the ring to start after it."""
    if place not in ring:
        return ring
    at = ring.index(place)
    return ring[at + 1 :] + ring[:at]


def dep_lines(index: Index) -> list[bytes]:
    """Return the lines of modules.dep without LF: each module with all its dependencies, direct and indirect.

    Raises Unusable for a cycle.
    """
    numbers = numbered(index)
    by_number = [0] * len(numbers)
    for place, number in enumerate(numbers):
        by_number[number] = place
    shown = [encode(index.members[place].shown) for place in by_number]
    closures: list[set[int]] = [set()] * len(numbers)
    lines = [b""] * len(numbers)
    for number in range(len(numbers) - 1, -1, -1):
        place = by_number[number]
        words = [shown[number] + b":"]
        if index.edges[place]:
            closure: set[int] = set()
            for needed in index.edges[place]:
                closure.add(numbers[needed])
                closure |= closures[numbers[needed]]
            closures[number] = closure
            words += [shown[each] for each in sorted(closure)]
        lines[place] = b" ".join(words)
    return lines
