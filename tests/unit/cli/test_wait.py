"""`kmodd wait`: its exit status, and one line with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kmodd.cli import wait
from kmodd.cli.client import Refused
from kmodd.cli.device_paths import asking_path, device_path
from tests.answering_daemon import daemon_of


@pytest.mark.parametrize(
    ("result", "status", "said"),
    [
        ("live", 0, ""),
        ("builtin", 0, ""),
        ("failed", 1, "kmodd wait: c: failed; see `kmodd why c`\n"),
    ],
)
def test_the_result_of_a_module(
    tmp_path: Path, result: str, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with daemon_of(tmp_path, {"name": "c", "result": result}) as path:
        assert wait.main(["--socket", path, "c"]) == status
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("error", "parameters", "status", "said"),
    [
        ("TimedOut", {"stuck": ["x"]}, 1, "timed out after 1s: c is not there; loading: x"),
        ("UnknownName", {}, 1, "no module or alias 'c'; see `kmodd explain c`"),
        ("Busy", {}, 1, "too many calls wait already; try again later"),
        ("NoModuleTree", {"message": "no module tree"}, 3, "no module tree"),
    ],
)
def test_a_refusal(
    error: str, parameters: dict[str, Any], status: int, said: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def refuse(*_: object, **__: object) -> None:
        raise Refused(f"io.kmodd.{error}", parameters)

    monkeypatch.setattr(wait, "call_awaited", refuse)
    assert wait.main(["--timeout", "1", "c"]) == status
    assert capsys.readouterr().err == f"kmodd wait: {said}\n"


@pytest.mark.root
def test_a_device_that_is_none_fails_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("/sys/devices/nosuch", "/dev/nosuch", "/dev", "/sys/kernel"):
        assert wait.main([name]) == 1
        assert capsys.readouterr().err == f"kmodd wait: {name} is no device\n"


@pytest.mark.root
def test_a_virtual_device_asks_for_no_driver(capsys: pytest.CaptureFixture[str]) -> None:
    """By its path below /sys and by its node; the daemon is not asked."""
    for name in ("/sys/devices/virtual/mem/null", "/dev/null"):
        assert wait.main(["--socket", "/nowhere", name]) == 1
        assert capsys.readouterr().err == f"kmodd wait: {name} has no driver and asks for none: it is virtual\n"


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("class/net/eth0", "/devices/pci0/0000:01:00.0"),
        ("class/net/lo", "/devices/virtual/net/lo"),
        ("bus/pci/devices/0000:01:00.0", "/devices/pci0/0000:01:00.0"),
    ],
)
def test_an_interface_stands_for_the_device_above_it_with_a_driver(tmp_path: Path, link: str, expected: str) -> None:
    """It is the one that the daemon is asked about. Controls: a virtual interface, and that device itself."""
    sys = tmp_path / "sys"
    for name in ("pci0/0000:01:00.0/net/eth0", "virtual/net/lo"):
        (sys / "devices" / name).mkdir(parents=True)
    (sys / "devices/pci0/0000:01:00.0/driver").symlink_to("../../../bus/pci/drivers/x")
    for name, target in {
        "class/net/eth0": "pci0/0000:01:00.0/net/eth0",
        "class/net/lo": "virtual/net/lo",
        "bus/pci/devices/0000:01:00.0": "pci0/0000:01:00.0",
    }.items():
        (sys / name).parent.mkdir(parents=True, exist_ok=True)
        (sys / name).symlink_to(sys / "devices" / target)
    assert asking_path(device_path(f"/sys/{link}", str(tmp_path)), str(tmp_path)) == expected


@pytest.mark.parametrize(
    ("error", "result", "loading"),
    [("TimedOut", "timed_out", ["x"]), ("UnknownName", "unknown", []), ("Busy", "refused", [])],
)
def test_an_object_has_the_result(
    error: str, result: str, loading: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise Refused(f"io.kmodd.{error}", {"stuck": loading})

    monkeypatch.setattr(wait, "call_awaited", refuse)
    assert wait.main(["--json", "c"]) == 1
    assert json.loads(capsys.readouterr().out) == {"name": "c", "result": result, "loading": loading}


def test_the_objects_of_what_is_there_and_of_what_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with daemon_of(tmp_path, {"name": "c", "result": "live"}) as path:
        assert wait.main(["--json", "--socket", path, "c"]) == 0
    assert wait.main(["--json", "--socket", path, "/sys/nosuch"]) == 1
    results = [json.loads(line)["result"] for line in capsys.readouterr().out.splitlines()]
    assert results == ["live", "unknown"]


def test_a_timeout_that_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("soon", "-1", "nan"):
        assert wait.main(["c", f"--timeout={word}"]) == 2
    assert "invalid --timeout 'soon'" in capsys.readouterr().err
