"""Paths of a module tree, their changes, and a snapshot of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kmodd.config.modprobe_d import Extensions
from kmodd.errors import NoTree
from kmodd.host import tree as host_tree
from kmodd.host.regular_files import read_file
from kmodd.host.tree import Tree
from kmodd.index.catalog import Snapshot, lookup
from kmodd.planning.plan import Plan
from kmodd.planning.request import Request
from kmodd.planning.resolve import options_of, resolve
from tests import rootfs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    place = rootfs.build("names", tmp_path / "root")
    (place / "etc" / "modprobe.d").mkdir(parents=True)
    (place / "proc").mkdir()
    return place


def index(root: Path, name: str) -> Path:
    return root / "lib" / "modules" / rootfs.RELEASE / name


def plan(tree: Tree, snapshot: Snapshot, name: str) -> Plan:
    return resolve(Request(name, "operator"), snapshot, tree.loaded(), options_of("operator"), tree.present)


# ── where ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_only_release_below_a_root_is_a_guess(root: Path) -> None:
    tree = Tree(str(root) + "/")
    assert (tree.release, tree.guessed, tree.root) == (rootfs.RELEASE, True, str(root))
    assert tree.directory == f"/lib/modules/{rootfs.RELEASE}"
    assert not Tree(str(root), rootfs.RELEASE).guessed


def test_several_releases_are_not_guessed(root: Path) -> None:
    (root / "lib" / "modules" / "6.2").mkdir()
    tree = Tree(str(root))
    assert (tree.release, tree.guessed) == (os.uname().release, False)


def test_a_missing_tree_is_reported(tmp_path: Path) -> None:
    with pytest.raises(NoTree, match=rf"^no module tree for kernel 9\.9: {tmp_path}/lib/modules/9\.9 does not exist$"):
        Tree(str(tmp_path), "9.9").snapshot()
    running = os.uname().release
    tree = Tree()
    if not os.path.isdir(tree.directory):
        with pytest.raises(NoTree, match=f"^no module tree for the running kernel {running}: /lib/modules/"):
            tree.snapshot()


def test_a_tree_without_an_index_is_reported(tmp_path: Path) -> None:
    (tmp_path / "lib" / "modules" / "1").mkdir(parents=True)
    with pytest.raises(NoTree, match=r"no module index for kernel 1: no .*/lib/modules/1/modules\.dep; run depmod"):
        Tree(str(tmp_path)).snapshot()


def test_usr_lib_modules_serves_where_lib_has_none(root: Path) -> None:
    (root / "usr").mkdir()
    (root / "lib").rename(root / "usr" / "lib")
    tree = Tree(str(root))
    assert tree.directory == f"/usr/lib/modules/{rootfs.RELEASE}"
    assert plan(tree, tree.snapshot(), "loop").steps[0].module == "loop"


def test_a_tree_that_appears_late_is_found_in_both_places(root: Path) -> None:
    """As with a late mount on a system whose /usr is not merged: both places are watched until one has the tree."""
    away, release = root / "away", rootfs.RELEASE
    (root / "lib" / "modules").rename(away)
    tree = Tree(str(root), release)
    places = {f"{root}{place}/{release}" for place in ("/lib/modules", "/usr/lib/modules")}
    with pytest.raises(NoTree, match=f"{root}/lib/modules/{release} does not exist"):
        tree.snapshot()
    assert places <= set(tree.directories())
    (root / "usr" / "lib").mkdir(parents=True)
    away.rename(root / "usr" / "lib" / "modules")
    assert plan(tree, tree.snapshot(), "loop").steps[0].module == "loop"
    assert tree.directory == f"/usr/lib/modules/{release}"
    assert f"{root}/lib/modules/{release}" not in tree.directories(), "the other place matters while there is no tree"


def test_printed_paths_have_no_root_and_a_module_dir_is_printed(root: Path, tmp_path: Path) -> None:
    tree = Tree(str(root))
    (step,) = plan(tree, tree.snapshot(), "loop").steps
    assert step.path == f"/lib/modules/{rootfs.RELEASE}/kernel/drivers/block/loop.ko"  # type: ignore[union-attr]
    assert os.path.exists(tree.real(step.path))  # type: ignore[union-attr]
    other = Tree(module_dir=str(root), release=rootfs.RELEASE)
    (step,) = plan(other, other.snapshot(), "loop").steps
    assert step.path == f"{root}/lib/modules/{rootfs.RELEASE}/kernel/drivers/block/loop.ko"  # type: ignore[union-attr]


def test_present_is_about_the_root(root: Path) -> None:
    tree = Tree(str(root))
    assert tree.present(f"{tree.directory}/modules.dep")
    assert not tree.present("/etc/passwd")
    assert not tree.present("/a\0b")


def test_loaded_is_nothing_without_proc(root: Path) -> None:
    tree = Tree(str(root))
    assert not tree.loaded().modules
    (root / "proc" / "modules").write_text("loop 1 0 - Live 0x0\n")
    assert tree.loaded().state("loop") == "live"


def test_modules_may_be_links(root: Path) -> None:
    loop = index(root, "kernel/drivers/block/loop.ko")
    loop.rename(root / "loop.ko")
    loop.symlink_to(root / "loop.ko")
    tree = Tree(str(root))
    assert tree.present(f"{tree.directory}/kernel/drivers/block/loop.ko")


# ── configuration ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_merged_usr_is_read_once_under_its_short_name(root: Path) -> None:
    (root / "usr").mkdir()
    (root / "lib").rename(root / "usr" / "lib")
    (root / "lib").symlink_to("usr/lib")
    (root / "usr" / "lib" / "modprobe.d").mkdir()
    (root / "usr" / "lib" / "modprobe.d" / "a.conf").write_text("blacklist loop\n")
    (line,) = Tree(str(root)).config().blacklist
    assert str(line.at) == "/lib/modprobe.d/a.conf:1"


def test_two_libs_are_two_directories(root: Path) -> None:
    for place in ("usr/lib", "lib"):
        (root / place / "modprobe.d").mkdir(parents=True)
        (root / place / "modprobe.d" / "a.conf").write_text(f"options loop from={place}\n")
    assert [line.text for line in Tree(str(root)).config().options] == ["from=usr/lib"]


def test_the_command_line_of_the_root_counts_and_beyond_is_carried(root: Path) -> None:
    (root / "proc" / "cmdline").write_text("modprobe.blacklist=a-b\n")
    assert [line.module for line in Tree(str(root)).config().blacklist] == ["a-b"]
    config = Tree(str(root), extensions=Extensions(cmdline_blacklist_dashes=True)).config()
    assert [line.module for line in config.blacklist] == ["a_b"]
    assert config.extensions.cmdline_blacklist_dashes


# ── extensions ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_extension_is_laid_over_the_tree(root: Path) -> None:
    place = index(root, "index.d/10-ext")
    place.mkdir(parents=True)
    (place / "modules.dep").write_text("updates/loop.ko: kernel/drivers/net/tun.ko\n")
    (place / "modules.alias").write_text("alias new-thing loop\n")
    tree = Tree(str(root))
    snapshot = tree.snapshot()
    steps = plan(tree, snapshot, "new-thing").steps
    assert [step.module for step in steps] == ["tun", "loop"]
    assert str(steps[-1].because.at) == "index.d/10-ext/modules.alias:1"
    (place / "modules.alias").write_text("alias other-thing loop\n")
    assert not tree.is_current(snapshot)


# ── changes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def touched(root: Path) -> list[tuple[str, Path]]:
    return [
        ("edited", root / "etc/modprobe.d/a.conf"),
        ("index", index(root, "modules.alias")),
        ("bin", index(root, "modules.dep.bin")),
        ("softdep", index(root, "modules.softdep")),
        ("builtin", index(root, "modules.builtin.modinfo")),
    ]


def test_a_snapshot_is_current_until_a_file_of_it_changes(root: Path) -> None:
    (root / "etc/modprobe.d/a.conf").write_text("blacklist loop\n")
    tree = Tree(str(root))
    for what, path in touched(root):
        snapshot = tree.snapshot()
        assert tree.is_current(snapshot)
        with path.open("a") as file:
            file.write("#\n")
        assert not tree.is_current(snapshot), what
        assert tree.is_current(tree.snapshot())


def test_an_edit_in_place_of_equal_size_is_noticed(root: Path) -> None:
    conf = root / "etc/modprobe.d/a.conf"
    conf.write_text("blacklist loop\n")
    os.utime(conf, ns=(10**18, 10**18))
    tree = Tree(str(root))
    snapshot = tree.snapshot()
    conf.write_text("blacklist dumm\n")
    assert not tree.is_current(snapshot)


def test_new_and_removed_files_and_directories_are_noticed(root: Path) -> None:
    tree = Tree(str(root))
    snapshot = tree.snapshot()
    (root / "run" / "modprobe.d").mkdir(parents=True)
    assert not tree.is_current(snapshot)
    snapshot = tree.snapshot()
    (root / "run" / "modprobe.d" / "x.conf").write_text("")
    assert not tree.is_current(snapshot)
    snapshot = tree.snapshot()
    index(root, "modules.weakdep").write_text("# x\n")
    assert not tree.is_current(snapshot)
    snapshot = tree.snapshot()
    index(root, "modules.symbols").unlink()
    assert not tree.is_current(snapshot)


def test_an_index_replaced_by_another_of_equal_size_and_time_is_noticed(root: Path) -> None:
    tree = Tree(str(root))
    snapshot = tree.snapshot()
    alias = index(root, "modules.alias")
    before = alias.stat()
    new = alias.with_name("tmpfile")
    new.write_bytes(alias.read_bytes())
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.rename(alias)
    assert not tree.is_current(snapshot)


def test_indexes_are_read_again_only_if_they_have_changed(root: Path) -> None:
    """A change of the configuration alone is read in a fraction of the time."""
    tree = Tree(str(root))
    first = tree.snapshot()
    (root / "etc/modprobe.d/new.conf").write_text("alias new:* loop\n")
    second = tree.snapshot()
    assert second.catalog is first.catalog
    assert [hit.module for hit in lookup("new:x", second)] == ["loop"]
    assert lookup("new:x", first) == ()
    index(root, "modules.alias").write_text("alias other:* loop\n")
    third = tree.snapshot()
    assert third.catalog is not first.catalog
    assert [hit.module for hit in lookup("other:x", third)] == ["loop"]


def test_an_index_that_was_looked_up_while_the_tree_was_away_is_read_when_it_is_back(root: Path) -> None:
    """As after an upgrade that removed the modules: the directory comes back with the same marks."""
    tree = Tree(str(root))
    tree.snapshot()
    symbols = index(root, "modules.symbols")
    symbols.write_text("# Symbols\nalias symbol:some_function loop\n")
    snapshot = tree.snapshot()
    directory, hidden = symbols.parent, symbols.parent.with_name("hidden")
    directory.rename(hidden)
    assert lookup("symbol:some_function", snapshot) == ()
    with pytest.raises(NoTree):
        tree.check()
    hidden.rename(directory)
    assert [hit.module for hit in lookup("symbol:some_function", tree.snapshot())] == ["loop"]


def test_an_index_that_could_not_be_read_is_read_at_the_next_reload(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without a free file descriptor, or of a disk that fails for a moment."""
    tree, alias = Tree(str(root)), str(index(root, "modules.alias"))
    with monkeypatch.context() as patch:
        patch.setattr(host_tree, "read_file", lambda path: None if path.startswith(alias) else read_file(path))
        assert lookup("cpu:type:x86,feature:0099", tree.snapshot()) == ()
    known = next(iter(tree.snapshot().catalog.dump("modules.alias")))
    assert [hit.module for hit in lookup(known[0], tree.snapshot())] == [known[1]]
    assert tree.snapshot().catalog is tree.snapshot().catalog


def test_indexes_that_never_rest_are_not_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read as they change, they may be of two depmod runs, and their marks of either."""
    alias = index(root, "modules.alias")
    tree, before = Tree(str(root)), alias.stat()
    with monkeypatch.context() as patch:

        def read(path: str) -> bytes | None:
            data = read_file(path)
            with alias.open("ab") as file:
                file.write(b"# more\n")
            return data

        patch.setattr(host_tree, "read_file", read)
        mixed = tree.snapshot()
    assert before.st_size < alias.stat().st_size
    assert tree.snapshot().catalog is not mixed.catalog


def test_an_edit_that_keeps_size_and_time_is_noticed(root: Path) -> None:
    """As by `rsync --inplace --times`: the time of the change is the kernel's own."""
    tree, alias = Tree(str(root)), index(root, "modules.alias")
    first, before = tree.snapshot(), alias.stat()
    alias.write_bytes(alias.read_bytes().replace(b"alias ", b"alias x", 1).removesuffix(b"\n")[:-1] + b"\n")
    os.utime(alias, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (alias.stat().st_size, alias.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert not tree.is_current(first)
    assert tree.snapshot().catalog is not first.catalog


def test_an_index_replaced_midway_gives_no_mixture(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """depmod runs just after modules.dep was read: alias and dep must come from one run."""
    dep, alias = index(root, "modules.dep"), index(root, "modules.alias")
    real = read_file
    ran: list[str] = []

    def read(path: str) -> bytes | None:
        data = real(path)
        if path == str(dep) and not ran:
            ran.append(path)
            dep.write_text("kernel/new.ko:\n")
            alias.write_text("alias new:* new\n")
        return data

    monkeypatch.setattr(host_tree, "read_file", read)
    snapshot = Tree(str(root)).snapshot()
    assert ran
    assert snapshot.catalog.names() == ("new",)
    assert [hit.module for hit in lookup("new:x", snapshot)] == ["new"]


def test_an_index_that_never_rests_ends_all_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = iter(range(10**6))
    real = read_file

    def read(path: str) -> bytes | None:
        if path.endswith("modules.dep"):
            with open(path, "a") as file:
                file.write(f"kernel/x{next(count)}.ko:\n")
        return real(path)

    monkeypatch.setattr(host_tree, "read_file", read)
    tree = Tree(str(root))
    assert not tree.is_current(tree.snapshot()), "so it is read again next time"


def test_a_text_much_older_than_its_bin_is_not_believed(root: Path) -> None:
    alias = index(root, "modules.alias")
    alias.write_text("alias old:* loop\n")
    stamp = index(root, "modules.alias.bin").stat().st_mtime_ns
    os.utime(alias, ns=(stamp, stamp - 3600 * 10**9))
    snapshot = Tree(str(root)).snapshot()
    assert lookup("old:x", snapshot) == ()
    assert [str(hit.at) for hit in lookup("fs-ext4", snapshot)] == ["modules.alias.bin"]


def test_modules_builtin_may_be_older_than_its_bin(root: Path) -> None:
    text = index(root, "modules.builtin")
    text.write_text(text.read_text() + "kernel/x/in_the_text.ko\n")
    stamp = index(root, "modules.builtin.bin").stat().st_mtime_ns
    os.utime(text, ns=(stamp, stamp - 3600 * 10**9))
    assert Tree(str(root)).snapshot().catalog.is_builtin("in_the_text")


def test_a_quick_snapshot_reads_an_index_at_the_first_lookup(root: Path) -> None:
    tree = Tree(str(root))
    index(root, "modules.dep").unlink()
    snapshot = tree.quick_snapshot()
    index(root, "modules.alias").write_text("alias late:* loop\n")
    assert [hit.module for hit in lookup("late:x", snapshot)] == ["loop"]


def test_is_current_costs_little(root: Path) -> None:
    """A no-match is reported only after this check, so it must not read files."""
    tree = Tree(str(root))
    snapshot = tree.snapshot()

    def fail(path: str) -> bytes | None:
        raise AssertionError(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_tree, "read_file", fail)
        assert tree.is_current(snapshot)


@pytest.mark.timeout(300)
def test_configuration_of_100_mib_is_read_up_to_the_limit(root: Path) -> None:
    """A file that exceeds it is named, and those after it are read. Control: the same file within it is read."""
    folder = root / "etc/modprobe.d"
    line = b"# a comment of a file that grows\n"
    (folder / "a.conf").write_bytes(b"blacklist first\n")
    for name in ("b", "c"):
        (folder / f"{name}.conf").write_bytes(b"blacklist left_out\n" + line * ((50 << 20) // len(line)))
    (folder / "d.conf").write_bytes(b"blacklist last\n")
    config = Tree(str(root), rootfs.RELEASE).config()
    assert [each.module for each in config.blacklist] == ["first", "last"]
    why = "the files of modprobe.d have more than 8 MiB in all"
    assert [(each.at.file, each.expected) for each in config.problems] == [
        (f"/etc/modprobe.d/{name}.conf", f"{why}, expected less") for name in ("b", "c")
    ]
    assert f"libkmod: ERROR kmodd: ignoring /etc/modprobe.d/b.conf: {why}" in config.complaints
    (folder / "c.conf").write_bytes(b"blacklist left_out\n" + line * ((7 << 20) // len(line)))
    config = Tree(str(root), rootfs.RELEASE).config()
    assert [each.module for each in config.blacklist] == ["first", "left_out", "last"]
