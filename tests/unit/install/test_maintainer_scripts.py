"""What the package's postinst does with running units; tests/package installs the package as a whole."""

from __future__ import annotations

from pathlib import Path

from tests.installation import ROOT, run


def configure(folder: Path, *, booted: bool) -> list[str]:
    """Run the postinst from `#DEBHELPER#` on, with made-up programs; returns their calls."""
    running, programs, calls = folder / "run", folder / "bin", folder / "calls"
    programs.mkdir()
    calls.touch()
    if booted:
        running.mkdir()
    for name in ("systemctl", "deb-systemd-invoke", "python3"):
        (programs / name).write_text(f'#!/bin/sh\necho "${{0##*/}} $*" >>{calls}\n')
        (programs / name).chmod(0o755)
    text = (ROOT / "debian/kmodd.postinst").read_text().partition("#DEBHELPER#")[2]
    assert "/run/systemd/system" in text
    script = folder / "postinst"
    script.write_text(f"set -e\n{text}".replace("/run/systemd/system", str(running)))
    done = run(["/bin/sh", script, "configure", "0.1"], PATH=f"{programs}:/usr/bin:/bin")
    assert (done.returncode, done.stdout) == (0, "")
    return [call for call in calls.read_text().splitlines() if not call.startswith("python3")]


def test_an_upgrade_opens_the_socket_whose_type_has_changed(tmp_path: Path) -> None:
    """systemd keeps no socket of another type over daemon-reload. Before the daemon, which connects to it."""
    assert configure(tmp_path, booted=True) == [
        "systemctl --system daemon-reload",
        "deb-systemd-invoke try-restart kmodd-stack.socket",
        "deb-systemd-invoke try-restart kmodd.service",
    ]


def test_without_systemd_no_unit_is_restarted(tmp_path: Path) -> None:
    assert configure(tmp_path, booted=False) == []


def test_removal_ends_the_trace_of_loads_and_an_upgrade_keeps_it(tmp_path: Path) -> None:
    """The daemon leaves the trace, which says who loads modules while it is stopped."""
    instance = tmp_path / "tracing/instances/kmodd-loads"
    instance.mkdir(parents=True)
    text = (ROOT / "debian/kmodd.prerm").read_text().partition("#DEBHELPER#")[0]
    assert "/sys/kernel/tracing" in text
    script = tmp_path / "prerm"
    for old, new in (("/sys/kernel", tmp_path), ("/run/systemd/system", tmp_path / "none"), ("/usr/lib", tmp_path)):
        text = text.replace(old, str(new))
    script.write_text(text)
    for word, is_kept in (("upgrade", True), ("remove", False), ("remove", False)):
        assert run(["/bin/sh", script, word]).returncode == 0
        assert instance.exists() is is_kept
