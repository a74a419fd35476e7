"""The depmod tool: its cache, the replacement of all files or none, its progress bar."""

from __future__ import annotations

import contextlib
import os
import pty
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kmodd.cli.kmod import depmod as tool
from kmodd.errors import ParseError
from kmodd.host import atomic_files
from kmodd.host import module_facts as cache_file
from kmodd.modfile import depmod_cache, depmod_graph
from kmodd.modfile.depmod_cache import Entry
from kmodd.modfile.depmod_graph import Index, member
from kmodd.modfile.elf import Facts, joined
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


def test_only_changed_modules_are_read(tree: Path, reads: list[str]) -> None:
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
def test_a_damaged_cache_is_replaced(tree: Path, reads: list[str], damage: str) -> None:
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
            if call == "open" and counts:
                counts = bool(int(str(arguments[1])) & os.O_CREAT)
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


def test_it_imports_little(tmp_path: Path) -> None:
    """A run over plain modules needs no decompressor, no ELF library, no parser of modprobe.d; kmod 34's directories of
    depmod.d are empty.
    """
    code = (
        f"import sys; from kmodd.cli.kmod.depmod import main; main(['-n', '-C{tmp_path}', '-b/nowhere', '6.1']); "
        "print(sorted(set(sys.modules) & set(sys.argv[1:])))"
    )
    names = ["elftools", "lzma", "zstandard", "json", "asyncio", "argparse", "pyudev", "varlink",
             "kmodd.config.modprobe_d", "kmodd.host.tree", "kmodd.planning.resolve", "subprocess", "logging", "ctypes",
             "typing_extensions"]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("no_color", ["", "1"])
def test_bar_on_a_terminal(no_color: str) -> None:
    """On a terminal a long run shows a bar, coloured unless NO_COLOR is set, and removes it at its end."""
    code = (
        "from kmodd.cli import progress; progress.DELAY = progress.INTERVAL = 0\n"
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


def test_threads_read_the_same_as_one(tree: Path, monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
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


@pytest.mark.parametrize("has_out", [False, True])
def test_the_tree_of_a_kernel_that_is_gone_is_not_made(tree: Path, has_out: bool, tmp_path: Path) -> None:
    module, base = str(tree / "kernel/m0.ko"), ["-b", str(tmp_path)]
    out = ["-o", str(tmp_path / "out")] if has_out else []
    said = ours(tool.main, [*base, *out, "9.9.9-gone", module])
    assert (said.status, said.out) == (1, b"")
    gone = f"could not open directory {tmp_path}/lib/modules/9.9.9-gone: No such file or directory\n"
    assert said.err.decode() == f"depmod: WARNING: {gone}depmod: FATAL: {gone}"
    assert not (tmp_path / "lib/modules/9.9.9-gone").exists()
    assert not (tmp_path / "out").exists()
    assert ours(tool.main, [*base, *out, VERSION, module]).status == 0, "the control"
