"""Files that `make install` places and `make uninstall` removes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from kmodd.cli.__main__ import TOOLS
from tests.installation import ROOT, UNITS, listing, make, run


def test_the_manifest_lists_exactly_what_was_placed(image: Path) -> None:
    assert set((image / "usr/lib/kmodd/manifest").read_text().splitlines()) == listing(image)


def test_two_installations_are_the_same_bytes(image: Path, tmp_path: Path) -> None:
    """Under another umask, and with another value of a variable that programs sort and print by."""
    again = tmp_path / "again"
    done = run(["sh", "-c", 'umask 077 && exec make install DESTDIR="$0" PREFIX=/usr', again], LC_ALL="C.UTF-8")
    assert done.returncode == 0, done.stdout

    def bytes_of(tree: Path) -> dict[str, tuple[int, bytes | str]]:
        return {
            str(path.relative_to(tree)): (
                path.lstat().st_mode,
                os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "",
            )
            for path in tree.rglob("*")
        }

    first, second = bytes_of(image), bytes_of(again)
    assert {name for name in {*first, *second} if first.get(name) != second.get(name)} == set()
    assert len(first) > 100


def test_everything_has_its_place(image: Path) -> None:
    expected = {f"/usr/lib/systemd/system/{unit}" for unit in UNITS} | {
        "/usr/bin/kmodd",
        "/usr/lib/kmodd/udev-rule",
        "/usr/lib/kmodd/stack",
        "/usr/lib/kmodd/kernel-helper",
        "/usr/lib/kmodd/kernel-hook",
        "/etc/kernel/postinst.d/zz-kmodd",
        "/usr/lib/kernel/install.d/95-kmodd.install",
        "/usr/lib/kmodd/kmodd-request",
        "/usr/lib/kmodd/varlink/server.py",
        "/usr/lib/kmodd/inotify_simple.py",
        "/usr/lib/kmodd/licenses/varlink/LICENSE.txt",
        "/usr/lib/kmodd/licenses/inotify_simple/LICENSE",
        "/usr/lib/systemd/catalog/kmodd.catalog",
        "/usr/lib/systemd/system/systemd-modules-load.service.d/kmodd.conf",
        "/usr/share/doc/kmodd/README.md",
        "/usr/share/doc/kmodd/explain.schema.json",
        "/etc/bash_completion.d/kmodd",
        "/etc/kmodd/policy.d/",
        "/usr/share/zsh/vendor-completions/_kmodd-tools",
        "/usr/share/fish/vendor_completions.d/modprobe.fish",
        "/usr/share/initramfs-tools/hooks/kmodd",
        "/usr/lib/dracut/modules.d/99kmodd/module-setup.sh",
        "/usr/lib/dracut/dracut.conf.d/50-kmodd.conf",
        *(f"/usr/lib/kmodd/bin/{tool}" for tool in TOOLS),
        *(f"/usr/share/kmodd/policy.d/{path.name}" for path in (ROOT / "data/policy.d").iterdir()),
        "/usr/share/doc/kmodd/POLICY.md",
    }
    sources = {
        f"/usr/lib/kmodd/{path.relative_to(ROOT)}" for path in (ROOT / "kmodd").rglob("*.*") if path.suffix != ".pyc"
    }
    assert expected | sources <= listing(image)
    assert not [path for path in listing(image) if "/tests/" in path]


def test_modes(image: Path) -> None:
    programs = {
        f"/usr/lib/kmodd/{name}" for name in ("udev-rule", "stack", "kernel-helper", "kernel-hook", "kmodd-request")
    }
    programs |= {"/usr/bin/kmodd", "/usr/share/initramfs-tools/hooks/kmodd"}
    programs |= {"/etc/kernel/postinst.d/zz-kmodd", "/usr/lib/kernel/install.d/95-kmodd.install"}
    programs |= {"/usr/lib/dracut/modules.d/99kmodd/module-setup.sh"}
    for path in listing(image):
        if (image / path[1:]).is_symlink():
            continue
        mode = (image / path[1:]).stat().st_mode & 0o7777
        assert mode == (0o755 if path.endswith("/") or path in programs else 0o644), path


def test_links_lead_to_installed_files(image: Path) -> None:
    links = [path for path in image.rglob("*") if path.is_symlink()]
    assert {path.name for path in links if path.parent.name == "bin"} == set(TOOLS)
    assert not [path for path in links if os.path.isabs(os.readlink(path)) or not path.exists()]


def test_the_name_a_tool_is_called_by_picks_it(prefix: Path) -> None:
    for tool in ("modprobe", "insmod", "rmmod"):
        done = run([prefix / "lib/kmodd/bin" / tool, "-V"])
        assert (done.returncode, done.stdout.splitlines()[0]) == (0, "kmod version 34.2"), tool


@pytest.fixture
def installed(image: Path, tmp_path: Path) -> Path:
    """An installation that a test may change: a copy, which the manifest fits wherever it lies."""
    return Path(shutil.copytree(image, tmp_path / "image", symlinks=True))


def test_uninstall_removes_every_file(installed: Path) -> None:
    assert listing(installed)
    make("uninstall", f"DESTDIR={installed}")
    assert listing(installed) == set()


def test_uninstall_leaves_other_files(tmp_path: Path) -> None:
    (tmp_path / "usr/lib/systemd/system").mkdir(parents=True)
    other = tmp_path / "usr/bin/other"
    for _ in range(2):  # the second time over the first
        make("install", f"DESTDIR={tmp_path}")
    other.touch()
    make("uninstall", f"DESTDIR={tmp_path}")
    assert listing(tmp_path) == {
        "/usr/", "/usr/bin/", "/usr/bin/other", "/usr/lib/", "/usr/lib/systemd/", "/usr/lib/systemd/system/",
    }  # fmt: skip


def test_uninstall_goes_on_where_a_directory_is_gone_or_a_link(installed: Path) -> None:
    """An administrator keeps the rules elsewhere, and has removed another directory."""
    rules, examples = installed / "etc/kmodd/policy.d", installed / "usr/share/kmodd"
    rules.rmdir()
    rules.symlink_to("/var/empty")
    shutil.rmtree(examples)
    make("uninstall", f"DESTDIR={installed}")
    assert listing(installed) == {"/etc/", "/etc/kmodd/", "/etc/kmodd/policy.d"}


def test_an_installation_removes_files_that_the_old_one_had_more(installed: Path) -> None:
    manifest = installed / "usr/lib/kmodd/manifest"
    gone = installed / "usr/lib/kmodd/kmodd/gone/old.py"
    gone.parent.mkdir()
    gone.touch()
    manifest.write_text(manifest.read_text() + "/usr/lib/kmodd/kmodd/gone/\n/usr/lib/kmodd/kmodd/gone/old.py\n")
    make("install", f"DESTDIR={installed}")
    assert not gone.parent.exists()
    assert set(manifest.read_text().splitlines()) == listing(installed)


def test_uninstall_ends_the_trace_of_loads(tmp_path: Path) -> None:
    """Which the daemon leaves. Control: that of the running system stays if another one's files are removed."""
    instance = tmp_path / "tracing/instances/kmodd-loads"
    instance.mkdir(parents=True)
    for words, is_there in ((("DESTDIR=/", f"PREFIX={tmp_path}"), True), ((f"PREFIX={tmp_path}",), False)):
        (tmp_path / "lib/kmodd").mkdir(parents=True, exist_ok=True)
        (tmp_path / "lib/kmodd/manifest").write_text(f"{tmp_path}/lib/kmodd/manifest\n")
        make("uninstall", f"TRACEFS={tmp_path}/tracing", *words)
        assert instance.exists() is is_there


def test_uninstall_without_an_installation_fails(tmp_path: Path) -> None:
    assert "not installed" in make("uninstall", f"DESTDIR={tmp_path}", expect=2)


def test_a_wheel_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    """make runs in a copy of the checkout in which one byte was appended to the wheel."""
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "tests", "fixtures", "__pycache__"))
    with next((copy / "vendor").glob("*.whl")).open("ab") as wheel:
        wheel.write(b"x")
    done = run(["make", "-C", copy, "install", f"DESTDIR={tmp_path / 'image'}"])
    assert done.returncode != 0
    assert "not the file that vendor/requirements.txt pins" in done.stdout
    assert not (tmp_path / "image").exists()
