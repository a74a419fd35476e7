"""Units and journal catalogue, checked by systemd's own tools."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from kmodd.planning import record
from tests.installation import ROOT, UNITS, run


def test_units_follow_the_prefix(prefix: Path) -> None:
    for unit in UNITS:
        text = (prefix / "lib/systemd/system" / unit).read_text().replace(str(prefix), "")
        assert "/usr/bin/kmodd" not in text
        assert "/usr/lib/kmodd" not in text
    assert f"ExecStart={prefix}/bin/kmodd run\n" in (prefix / "lib/systemd/system/kmodd.service").read_text()


@pytest.fixture(scope="module")
def machine(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with the distribution's units and kmodd's, kmodd enabled; for the offline checks of systemd-analyze."""
    machine = tmp_path_factory.mktemp("machine") / "root"
    shutil.copytree(image, machine)
    units = machine / "usr/lib/systemd/system"
    shutil.copytree("/usr/lib/systemd/system", units, symlinks=True, dirs_exist_ok=True)
    wants = machine / "etc/systemd/system/sysinit.target.wants"
    wants.mkdir(parents=True)
    (wants / "kmodd.service").symlink_to("/usr/lib/systemd/system/kmodd.service")
    (machine / "bin").mkdir()
    for program in ("sh", "rm"):
        shutil.copy(f"/bin/{program}", machine / "bin")
    return machine


def test_systemd_accepts_the_units(machine: Path) -> None:
    done = run(["systemd-analyze", "verify", "--man=no", f"--root={machine}", *UNITS])
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(("extra", "cycle"), [("", False), ("After=sysinit.target\n", True)])
def test_the_boot_with_kmodd_has_no_ordering_cycle(machine: Path, extra: str, cycle: bool) -> None:
    unit = machine / "usr/lib/systemd/system/kmodd.service"
    text = unit.read_text()
    unit.write_text(text.replace("[Unit]\n", f"[Unit]\n{extra}", 1))
    done = run(["systemd-analyze", "verify", "--man=no", f"--root={machine}", "sysinit.target", "kmodd.service"])
    unit.write_text(text)
    assert ("ordering cycle" in done.stdout) == cycle, done.stdout


def test_a_loader_alone_has_cap_sys_module() -> None:
    daemon = (ROOT / "systemd/kmodd.service").read_text()
    lane = (ROOT / "systemd/kmodd-loader@.service").read_text()
    assert "\nCapabilityBoundingSet=CAP_NET_ADMIN CAP_SYSLOG\n" in daemon
    assert "@module" not in daemon
    assert "\nCapabilityBoundingSet=CAP_SYS_MODULE CAP_NET_ADMIN\n" in lane


def test_commands_run_without_a_sandbox_and_end_with_no_other_unit() -> None:
    """As under udevd: what is not set here is as for any service of root."""
    unit = (ROOT / "systemd/kmodd-command@.service").read_text()
    keys = {line.partition("=")[0] for line in unit.splitlines() if "=" in line and not line.startswith("#")}
    assert keys == {
        "Description", "Documentation", "DefaultDependencies", "IgnoreOnIsolate", "CollectMode",
        "ExecStart", "Slice", "KillMode", "OOMPolicy", "SyslogIdentifier",
    }  # fmt: skip
    assert "\nKillMode=process\n" in unit


EXPOSURE = {
    "kmodd.service": 2.3,
    "kmodd-loader@x.service": 2.0,
    "kmodd-metrics.service": 1.7,
    "kmodd-requester@x.service": 1.7,
    "kmodd-restore-udev.service": 1.7,
    "kmodd-stack@x.service": 1.7,
}
"""The highest that is accepted; kmodd-command@.service has no sandbox."""


@pytest.mark.parametrize("unit", [*EXPOSURE])
def test_the_exposure_level_is_low_and_each_directive_not_used_has_a_reason(machine: Path, unit: str) -> None:
    done = run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", f"--root={machine}", unit], LC_ALL="C.UTF-8"
    )
    level = re.search(r"Overall exposure level for \S+: (\d+\.\d)", done.stdout)
    assert level, done.stdout
    assert float(level[1]) <= EXPOSURE[unit]
    missing = [name.partition("/")[0] for name in re.findall(r"^✗ (\S+)", done.stdout, re.MULTILINE)]
    assert "User=" in missing, "the control: there is something to give a reason for"
    reasons = (ROOT / "docs/SECURITY.md").read_text().partition("### Directives that are not used")[2]
    assert [name for name in missing if f"`{name}`" not in reasons.partition("\n## ")[0]] == []


def test_every_unit_with_a_program_has_a_figure() -> None:
    services = {unit.replace("@.", "@x.") for unit in UNITS if unit.endswith(".service")}
    assert services - {"kmodd-command@x.service"} == set(EXPOSURE)


def test_the_catalogue_has_an_entry_for_each_record(image: Path) -> None:
    (image / "var/lib/systemd/catalog").mkdir(parents=True, exist_ok=True)
    try:
        done = run(["journalctl", f"--root={image}", "--update-catalog"])
        assert done.returncode == 0, done.stdout
        explained = re.findall(
            r"^([0-9a-f]{32}) kmodd: ", run(["journalctl", f"--root={image}", "--list-catalog"]).stdout, re.MULTILINE
        )
    finally:
        shutil.rmtree(image / "var")
    known = {value for value in vars(record).values() if isinstance(value, str) and re.fullmatch("[0-9a-f]{32}", value)}
    known |= {record.PREFIX + number for number, _ in record.KINDS.values()}
    assert set(explained) == known
    assert len(explained) == len(known)


def test_each_catalogue_entry_is_whole_and_wrapped() -> None:
    text = (ROOT / "systemd/kmodd.catalog").read_text()
    for entry in text.split("\n-- ")[1:]:
        head, _, body = entry.partition("\n\n")
        assert re.fullmatch(
            r"[0-9a-f]{32}\nSubject: .+\nDefined-By: kmodd\nDocumentation: file:///usr/share/doc/kmodd/.+", head
        )
        assert body.strip()
        assert max(len(line) for line in body.splitlines()) <= 76
