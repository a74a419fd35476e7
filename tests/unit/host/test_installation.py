"""What is wrong with an installation, by the files of a machine below a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmodd.host.installation import read_installation


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine on which kmodd is installed and runs."""
    for path, text in (
        ("proc/sys/kernel/modprobe", "/usr/sbin/modprobe\n"),
        ("usr/lib/kmodd/kmodd-request", "helper"),
        ("run/udev/rules.d/80-drivers.rules", "# kmodd\n"),
        ("proc/mounts", "tracefs /sys/kernel/tracing tracefs rw 0 0\n"),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "usr/sbin").mkdir()
    (tmp_path / "usr/sbin/modprobe").hardlink_to(tmp_path / "usr/lib/kmodd/kmodd-request")
    return tmp_path


def findings(root: Path, *, is_running: bool = True) -> dict[str, str]:
    """Code → command of each finding."""
    found = read_installation(str(root), is_running=is_running)
    return {result.subject: result.command for result in found if not result.is_met}


def test_a_complete_installation_has_no_finding(root: Path) -> None:
    assert findings(root) == {}
    assert all(result.text for result in read_installation(str(root), is_running=True))


def test_another_helper_is_found_while_the_daemon_runs(root: Path) -> None:
    """Before, and with the daemon stopped, kmod's modprobe is the helper."""
    (root / "usr/sbin/modprobe").unlink()
    (root / "usr/sbin/modprobe").write_text("kmod")
    assert findings(root) == {"helper": "systemctl restart kmodd"}
    assert findings(root, is_running=False) == {}
    (root / "proc/sys/kernel/modprobe").write_text("\n")
    assert list(findings(root, is_running=False)) == ["helper"]
    assert (
        read_installation(str(root), is_running=False, has_helper=False)
        == read_installation(str(root), is_running=False)[1:]
    ), "KernelRequests=no"


def test_udevd_loads_modules_too(root: Path) -> None:
    (root / "run/udev/rules.d/80-drivers.rules").unlink()
    assert findings(root) == {"two-loaders": "systemctl restart kmodd"}
    assert findings(root, is_running=False) == {}
    (root / "etc/udev/rules.d").mkdir(parents=True)
    override = root / "etc/udev/rules.d/80-drivers.rules"
    override.touch()
    assert findings(root) == {"two-loaders": "rm /etc/udev/rules.d/80-drivers.rules"}
    override.unlink()
    override.symlink_to("/dev/null")
    assert findings(root) == {}, "masked by the administrator"


def test_tracefs_and_a_closed_kernel(root: Path) -> None:
    """A closed kernel is what `kmodd seal --permanent` makes, and no finding."""
    (root / "proc/mounts").write_text("proc /proc proc rw 0 0\n")
    (root / "proc/sys/kernel/modules_disabled").write_text("1\n")
    assert findings(root) == {"tracefs": "systemctl start sys-kernel-tracing.mount"}


@pytest.mark.parametrize(
    ("package", "finding"),
    [
        ("kmodd", {}),
        (":", {"diversion": "dpkg-divert --rename --remove /usr/sbin/modprobe"}),
        ("other", {"diversion": "dpkg-divert --rename --remove /usr/sbin/modprobe"}),
    ],
)
def test_a_diversion_of_modprobe(root: Path, package: str, finding: dict[str, str]) -> None:
    """The package's own is as it should be; one of others has its owner. A file that is cut off is no error."""
    database = root / "var/lib/dpkg/diversions"
    database.parent.mkdir(parents=True)
    database.write_text(
        f"/usr/bin/x\n/usr/bin/x.o\nother\n/usr/sbin/modprobe\n/usr/sbin/modprobe.kmod\n{package}\n/a\n"
    )
    assert findings(root) == finding
    if package == "kmodd":
        (root / "usr/lib/kmodd/kmodd-request").unlink()
        assert findings(root, is_running=False) == {"diversion": "dpkg-reconfigure kmodd"}


def test_two_installations(root: Path) -> None:
    for prefix in ("usr", "usr/local"):
        (root / prefix / "lib/kmodd").mkdir(parents=True, exist_ok=True)
        (root / prefix / "lib/kmodd/manifest").touch()
    assert findings(root) == {"two-installations": "make uninstall PREFIX=/usr/local"}
