"""depmod's graph: order, dependencies, cycles."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.modfile import depmod_graph, depmod_output
from kmodd.modfile.depmod_graph import Index, Member, Unusable, member
from kmodd.modfile.elf import Facts, joined, strings
from kmodd.names import module_name

VERSION = "6.1.0-unit"


def facts(exports: str = "", needs: str = "", aliases: str = "") -> Facts:
    lists = [joined(word.encode() for word in words.split()) for words in (aliases, exports, needs)]
    return Facts(aliases=lists[0], exports=lists[1], needs=lists[2])


def index(*modules: tuple[str, str, str], kernel: tuple[bytes, ...] = (), prefix: bytes = b"") -> Index:
    """An index of modules: name, exports, needs."""
    members = [member(f"/d/{name}.ko", "/d") for name, _, _ in modules]
    return depmod_graph.resolve(members, [facts(exports, needs) for _, exports, needs in modules], kernel, prefix)


def test_dependencies_are_ordered() -> None:
    """mod2 needs a symbol of mod1; mod3 too, and one of mod2."""
    found = index(("mod3", "", "two one"), ("mod2", "two", "one printk"), ("mod1", "one", ""))
    assert depmod_graph.dep_lines(found) == [b"mod3.ko: mod2.ko mod1.ko", b"mod2.ko: mod1.ko", b"mod1.ko:"]


def test_the_last_exporter_owns_a_symbol_and_the_kernel_has_least_say() -> None:
    found = index(("a", "s", ""), ("b", "s", ""), ("c", "", "s"), kernel=(b"s",))
    assert depmod_graph.dep_lines(found)[2] == b"c.ko: b.ko"


def test_dots_and_prefixes_of_symbols() -> None:
    found = index(("a", "_one two", ""), ("b", "", ".one"), ("c", "", "_two"), prefix=b"_")
    assert depmod_graph.dep_lines(found)[1:] == [b"b.ko: a.ko", b"c.ko: a.ko"]
    symbols = depmod_output.symbols(found)
    assert symbols == sorted([b"one", b"two"], key=lambda name: depmod_graph.bucket(name, depmod_graph.SYMBOL_BUCKETS))


def test_cycles_are_named() -> None:
    found = index(("a", "a", "b"), ("b", "b", "c"), ("c", "c", "a"), ("user", "", "a"), ("other", "", ""))
    with pytest.raises(Unusable) as caught:
        depmod_graph.dep_lines(found)
    texts = [complaint.text for complaint in caught.value.complaints]
    assert texts == ["Cycle detected: a -> b -> c -> a", "Found 3 modules in dependency cycles!"]


def test_all_need_all() -> None:
    """The ways through forty modules that all need each other are without number; some are named, and that is that."""
    every = " ".join(f"s{number}" for number in range(40))
    with pytest.raises(Unusable) as caught:
        depmod_graph.dep_lines(index(*((f"m{number}", f"s{number}", every) for number in range(40))))
    assert caught.value.complaints[-1].text.startswith("Found ")
    assert len(caught.value.complaints) > 2


def test_a_module_that_needs_itself() -> None:
    with pytest.raises(Unusable, match="Cycle detected: a -> a"):
        depmod_graph.dep_lines(index(("a", "x", "x")))


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=80))
def test_any_graph_is_ordered_or_a_cycle(pairs: list[tuple[int, int]]) -> None:
    """Each line has every needed module, each behind its users; or there is a cycle."""
    needs: dict[int, list[int]] = {number: [] for number in range(31)}
    for user, used in pairs:
        needs[user].append(used)
    found = index(*((f"m{n}", f"s{n}", " ".join(f"s{used}" for used in needs[n])) for n in range(31)))
    graph = TopologicalSorter({number: needs[number] for number in needs})
    try:
        graph.prepare()
    except CycleError:
        with pytest.raises(Unusable, match="modules in dependency cycles"):
            depmod_graph.dep_lines(found)
        return
    lines = [line.decode().replace(":", "").split() for line in depmod_graph.dep_lines(found)]
    for number, line in enumerate(lines):
        assert line[0] == f"m{number}.ko"
        for used in needs[number]:
            assert f"m{used}.ko" in line
        for place, name in enumerate(line):
            of_this = strings(found.facts[int(name[1:-3])].needs)
            assert not any(f"s{other[1:-3]}".encode() in of_this for other in line[:place])


def test_order_of_modules() -> None:
    paths = ["/d/kernel/b.ko.xz", "/d/kernel/a-b.ko", "/d/x.ko", "/else/c.ko", "/d/kernel/z.ko"]
    members = [member(path, "/d") for path in paths]
    order = b"kernel/z.ko\nkernel/a-b.ko\nkernel/b.ko\nkernel/z.ko\n"
    listed, complaints = depmod_graph.arranged(members, order, "o")
    assert [each.name for each in listed[:3]] == ["z", "a_b", "b"]
    assert complaints == ()
    hashed = depmod_graph.arranged(members, None, "o")[0]
    assert hashed[-2:] == listed[-2:] or {each.name for each in hashed} == {"a_b", "b", "c", "x", "z"}
    for bad, line in ((b"kernel/z.ko", 1), (b"a\n" + b"x" * 5000 + b"\n", 2)):
        again, complaints = depmod_graph.arranged(members, bad, "o")
        assert again == hashed
        assert complaints[0].text == f"o:{line} corrupted line misses '\\n'"


def test_members() -> None:
    wanted = Member(module_name("a-b"), "/d/k/a-b.ko.xz", "k/a-b.ko.xz", "k/a-b.ko")
    assert member("/d/k/a-b.ko.xz", "/d") == wanted
    assert member("/dd/a.ko", "/d").shown == "/dd/a.ko"
