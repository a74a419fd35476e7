"""depmod's parts: order, dependencies, tries, depmod.d, the cache, and replacing all files or none."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pty
import random
import shutil
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.cli.kmod import depmod as tool
from kmodd.config.depmod_d import DepmodConfig, kernel_matches, parse, wins
from kmodd.config.modprobe_d import ConfFile
from kmodd.errors import ParseError
from kmodd.host import atomic_files
from kmodd.host import module_facts as cache_file
from kmodd.index import bin_reader, bin_writer
from kmodd.modfile import depmod_cache, depmod_graph, depmod_output
from kmodd.modfile.depmod_cache import Entry
from kmodd.modfile.depmod_graph import Index, Member, Unusable, member
from kmodd.modfile.elf import Facts, joined, strings
from kmodd.names import module_name
from tests.elf_maker import GLOBAL, UNDEFINED, Maker
from tests.rootfs import Said
from tests.tool import contents, ours

VERSION = "6.1.0-unit"


def facts(exports: str = "", needs: str = "", aliases: str = "") -> Facts:
    lists = [joined(word.encode() for word in words.split()) for words in (aliases, exports, needs)]
    return Facts(aliases=lists[0], exports=lists[1], needs=lists[2])


def index(*modules: tuple[str, str, str], kernel: tuple[bytes, ...] = (), prefix: bytes = b"") -> Index:
    """An index of modules: name, exports, needs."""
    members = [member(f"/d/{name}.ko", "/d") for name, _, _ in modules]
    return depmod_graph.resolve(members, [facts(exports, needs) for _, exports, needs in modules], kernel, prefix)


# ── order and dependencies ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_course() -> None:
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
    """Each module's line has all that it needs, each behind its users; or there is a cycle."""
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
    assert [each.name for each in listed[:3]] == ["a_b", "b", "z"]
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


# ── tries ────────────────────────────────────────────────────────────────────────────────────────────────────────────

KEYS = st.text(st.sampled_from("ab:*[]_-\x01\x7f"), max_size=6)
ROWS = st.lists(st.tuples(KEYS, st.sampled_from(["m", "n", ""]), st.integers(0, 3)), max_size=60)


@given(ROWS)
def test_tries_are_those_of_binindex(rows: list[tuple[str, str, int]]) -> None:
    fast = bin_writer.build((key.encode(), priority, text.encode()) for key, text, priority in rows)
    assert fast == bin_reader.build(rows, preorder=False)


def test_a_key_beyond_ascii() -> None:
    with pytest.raises(ParseError):
        bin_writer.build([(b"a\x80", 0, b"m")])


# ── depmod.d ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_configuration() -> None:
    text = "search a built-in\n#search x\n\nsearch b\\\n c\noverride m 6 sub\noverride n 5 s\nexternal * /e\n"
    text += "exclude x y\nfoo\n"
    config = parse([ConfFile("/f", text)], "6.1")
    assert config == DepmodConfig(
        ("a", "built-in", "b", "c"), ("sub/m",), ("/e",), ("x", "y"), ("/f:10: ignoring bad line starting with 'foo'",)
    )
    assert parse([], "6.1").search == ("updates",)


def test_which_file_wins() -> None:
    plain = DepmodConfig()
    assert wins(plain, "/d", "m", "/d/updates/m.ko", "/d/kernel/m.ko")
    assert not wins(plain, "/d", "m", "/d/kernel/m.ko", "/d/updates/m.ko")
    assert not wins(plain, "/d", "m", "/d/extra/m.ko", "/d/kernel/m.ko")
    override = DepmodConfig(overrides=("kernel/m",))
    assert wins(override, "/d", "m", "/d/kernel/m.ko.xz", "/d/updates/m.ko")
    outside = DepmodConfig(search=("external", "updates"), externals=("/e",))
    assert wins(outside, "/d", "m", "/e/m.ko", "/d/updates/m.ko")


class _Regex(ctypes.Structure):
    _fields_ = [("room", ctypes.c_char * 256)]


def c_library_matches(pattern: str, text: str) -> bool:
    """What regcomp(3) and regexec(3) make of an extended regular expression."""
    library = ctypes.CDLL(None)
    compiled = _Regex()
    if library.regcomp(ctypes.byref(compiled), pattern.encode(), 1 | 8):
        return False
    status = library.regexec(ctypes.byref(compiled), text.encode(), 0, None, 0)
    library.regfree(ctypes.byref(compiled))
    return bool(status == 0)


PATTERNS = r"""
    6 ^6 ^6$ 6.1 6\.1 ^6\.1\.0-[0-9]+ (5|6)\.1 [[:digit:]]+$ [^6] [[:alpha:]]*-amd64 6.1.* .*amd64 ^.*$ x? (x)?6 a|6
    []6] [^]6] [6-] [a-f0-9.]* \w+ 6{1} 6{1,2}\. (6 6) [6 [[:foo:]] * + ?6 ^* a**6 6*+ 6+? 6?? \ 6\ [z-a] (|6) () [.]
    6$x $ ^ \.1\. [[.6.]] (^6) (6$|4$)
    """.split()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_kernel_versions_match_as_in_c(pattern: str) -> None:
    for release in ("6.1.0-56-amd64", "5.10.0-1-cloud", "66", "x6", "", "4"):
        if pattern == "*":
            assert kernel_matches(pattern, release)
        elif pattern not in FAR_FETCHED:
            assert kernel_matches(pattern, release) == c_library_matches(pattern, release), release


FAR_FETCHED = ("6)", "[[.6.]]", "^*")
"""Where `re` has no like: an unmatched parenthesis, a collating element, a repeated anchor. They match nothing here."""


# ── the cache ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A module directory with twenty modules; each needs the one before."""
    directory = tmp_path / "lib" / "modules" / VERSION
    (directory / "kernel").mkdir(parents=True)
    for number in range(20):
        maker = Maker().add(b".modinfo", b"alias=n%d\0" % number).add(b"__ksymtab_strings", b"s%d\0" % number)
        maker.symbols((b"s%d" % (number - 1), GLOBAL, UNDEFINED, 0))
        (directory / "kernel" / f"m{number}.ko").write_bytes(maker.image())
        os.utime(directory / "kernel" / f"m{number}.ko", (1e9, 1e9))
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        (directory / name).touch()
    return directory


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the module files that are read; and every file counts as long at rest."""
    seen: list[str] = []
    real = cache_file.read_facts

    def read(path: str) -> Facts:
        seen.append(Path(path).name)
        return real(path)

    monkeypatch.setattr(cache_file, "read_facts", read)
    monkeypatch.setattr(cache_file, "FRESH_NS", -(10**12))
    return seen


def run(directory: Path, *options: str) -> Said:
    return ours(tool.main, ["-b", str(directory.parents[2]), *options, VERSION])


QUIET = Said(b"", b"", 0)


def test_only_what_changed_is_read(tree: Path, reads: list[str]) -> None:
    assert run(tree) == QUIET
    assert len(reads) == 20
    before = contents(tree)
    reads.clear()
    assert run(tree) == QUIET
    assert reads == []
    assert contents(tree) == before
    # one new, one changed, one gone, one that only looks the same
    shutil.copy(tree / "kernel" / "m3.ko", tree / "kernel" / "new.ko")
    (tree / "kernel" / "m4.ko").write_bytes(Maker().add(b".modinfo", b"alias=other\0").image())
    (tree / "kernel" / "m5.ko").unlink()
    data = (tree / "kernel" / "m6.ko").read_bytes().replace(b"alias=n6", b"alias=N6")
    (tree / "kernel" / "m6.ko").write_bytes(data)
    os.utime(tree / "kernel" / "m6.ko", (1e9, 1e9))
    assert run(tree) == QUIET
    assert sorted(reads) == ["m4.ko", "m6.ko", "new.ko"]
    cached = contents(tree)
    assert b"alias N6 m6\n" in cached["modules.alias"]
    assert run(tree, "--no-cache") == QUIET
    fresh = contents(tree)
    assert {name: data for name, data in fresh.items() if name != depmod_cache.NAME} == {
        name: data for name, data in cached.items() if name != depmod_cache.NAME
    }


@pytest.mark.parametrize("damage", ["bent", "cut", "empty", "foreign", "version", "text"])
def test_a_bad_cache_is_noticed_and_made_anew(tree: Path, reads: list[str], damage: str) -> None:
    assert run(tree) == QUIET
    good = contents(tree)
    cache = tree / depmod_cache.NAME
    data = cache.read_bytes()
    cache.write_bytes({
        "bent": data[:-9] + bytes((data[-9] ^ 1,)) + data[-8:],
        "cut": data[: len(data) // 2],
        "empty": b"",
        "foreign": depmod_cache.dump("/elsewhere", depmod_cache.load(data, str(tree)).values()),
        "version": data[:16] + b"\xff" + data[17:],
        "text": b"not a cache\n" * 100,
    }[damage])  # fmt: skip
    reads.clear()
    said = run(tree, "-v")
    assert b"depmod: NOTICE: " in said.err
    assert b"; all modules are read\n" in said.err
    assert len(reads) == 20
    assert contents(tree) == good


def test_where_no_cache_is_left(tree: Path, reads: list[str]) -> None:
    """Not for single files, not with -n or --no-cache, and not in an initramfs in the making."""
    cache = tree / depmod_cache.NAME
    run(tree, "--no-cache")
    run(tree, "-n")
    ours(tool.main, ["-b", str(tree.parents[2]), VERSION, str(tree / "kernel" / "m0.ko")])
    assert not cache.exists()
    (tree.parents[2] / "init").symlink_to("sbin/init")
    run(tree)
    assert not cache.exists()
    (tree.parents[2] / "init").unlink()
    run(tree)
    assert cache.exists()
    reads.clear()
    run(tree, "-n")
    assert reads == []


def test_a_file_that_changed_just_now_is_not_believed() -> None:
    entries = [Entry("/x", (1, 2, 3, 4), Facts(), b""), Entry("/y", (1, 2, 3, 2**62), Facts(), b"")]
    assert [entry.path for entry in cache_file.keepable(entries)] == ["/x"]


def test_cache_form() -> None:
    entry = Entry("/d/\udcff.ko", (2**63, 1, -5, 7), Facts(b"a\0", b"", b"w\0", b"x\0y\0", b"n\0", 22), b"1234")
    data = depmod_cache.dump("/d", [entry])
    assert depmod_cache.load(data, "/d") == {entry.path: entry}
    for other in ("/e", "", "/d/"):
        with pytest.raises(ParseError):
            depmod_cache.load(data, other)


# ── all or none ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("call", ["open", "write", "fsync", "link", "replace"])
def test_all_files_or_none(tree: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Whatever call fails, and at whichever time: the old set stands, and nothing else is left."""
    assert run(tree) == QUIET
    before = contents(tree)
    (tree / "kernel" / "m0.ko").unlink()
    failed = 0
    for turn in range(1, 30):
        count = turn
        real = getattr(os, call)

        def flaky(*arguments: object, real: object = real, **named: object) -> object:
            nonlocal count
            counts = call in ("write", "fsync") or "modules." in str(arguments[0])
            count -= counts
            if counts and count == 0:
                raise OSError(28, "No space left on device")
            assert callable(real)
            return real(*arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, flaky)
            said = run(tree, "--no-cache")
        if said.status == 0:
            break
        failed += 1
        assert said.err.startswith(b"depmod: FATAL: could not write the index in ")
        assert contents(tree) == before
        assert sorted(path.name for path in tree.iterdir()) == sorted([*before, "kernel"])
    after = {name: data for name, data in contents(tree).items() if name != depmod_cache.NAME}
    assert after != {name: data for name, data in before.items() if name != depmod_cache.NAME}
    assert failed >= (0 if call == "link" else 5)


def test_a_new_directory_is_left_empty_by_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace
    calls = []

    def flaky(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == 3:
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", flaky)
    with pytest.raises(OSError, match="Input/output error"):
        atomic_files.replace_all(str(tmp_path), [(name, b"x") for name in "abcde"])
    assert list(tmp_path.iterdir()) == []


# ── the rest ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_imports_little() -> None:
    """A run over plain modules needs no decompressor, no ELF library, no parser of modprobe.d."""
    code = (
        "import sys; from kmodd.cli.kmod.depmod import main; main(['-n', '-b', '/nowhere', '6.1']); "
        "print(sorted(set(sys.modules) & set(sys.argv[1:])))"
    )
    names = ["elftools", "lzma", "zstandard", "json", "asyncio", "argparse", "pyudev", "varlink",
             "kmodd.config.modprobe_d", "kmodd.host.tree", "kmodd.planning.resolve", "subprocess", "logging", "ctypes",
             "typing_extensions"]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("no_color", ["", "1"])
def test_bar_on_a_terminal(no_color: str) -> None:
    """On a terminal a long run shows a bar, coloured unless NO_COLOR says otherwise, and wipes it away at its end."""
    code = (
        "from kmodd.cli import progress; progress._PATIENCE = progress._PAUSE = 0\n"
        "with progress.Bar('depmod') as bar:\n    bar.show(5, 10)"
    )
    main, side = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": no_color}
    subprocess.run([sys.executable, "-c", code], stderr=side, env=environment, check=True)
    os.close(side)
    parts = []
    with contextlib.suppress(OSError):  # EIO: the other side is closed and all it wrote is read
        while part := os.read(main, 10000):  # the kernel hands a terminal's text on in pieces
            parts.append(part)
    os.close(main)
    shown = b"".join(parts).decode()
    assert "5 of 10" in shown
    assert shown.endswith("\r\x1b[K")
    assert ("\x1b[32m" in shown) == (no_color == "")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.stderr == b""


def test_threads_read_what_one_reads(tree: Path, monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    import lzma

    assert run(tree, "--no-cache") == QUIET
    plain = contents(tree)
    for path in (tree / "kernel").iterdir():
        if rng.random() < 0.5:
            path.with_name(path.name + ".xz").write_bytes(lzma.compress(path.read_bytes()))
            path.unlink()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert run(tree, "--no-cache") == QUIET
    packed = contents(tree)
    assert packed["modules.alias"] == plain["modules.alias"]
    assert packed["modules.dep"].replace(b".xz", b"") == plain["modules.dep"]
