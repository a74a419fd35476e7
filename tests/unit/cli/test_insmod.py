"""insmod: what is kmodd's own; the rest is in tests/acting.py, beside kmod 30."""

from __future__ import annotations

import errno
import gzip
import lzma
from pathlib import Path

import pytest

from kmodd.cli.kmod import insmod
from kmodd.host.kmsg_reader import KernelLog
from kmodd.loader.in_process import Machine
from kmodd.planning.outcome import Outcome
from tests import compiled
from tests.fake_machine import FakeMachine


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path)


def run(machine: FakeMachine, *argv: str, told: list[Outcome] | None = None) -> int:
    return insmod.main(list(argv), Machine(machine, (lambda _: None) if told is None else told.append))


@pytest.mark.parametrize("suffix", ["gz", "xz"])
def test_a_compressed_file_goes_in_unpacked(machine: FakeMachine, suffix: str, tmp_path: Path) -> None:
    """By its first bytes, not by its name."""
    image = b"packed is a module"
    path = tmp_path / "packed.ko"
    path.write_bytes(gzip.compress(image) if suffix == "gz" else lzma.compress(image))
    assert run(machine, str(path), "a=1") == 0
    assert machine.calls == [("image", "packed", "a=1", 0)]


@pytest.mark.parametrize(
    ("argv", "flags"),
    [([], 0), (["-f"], 3), (["--force"], 3), (["--force-modversion"], 1), (["--force-vermagic"], 2), (["-ps"], 0)],
)
def test_force_is_for_the_kernel(machine: FakeMachine, argv: list[str], flags: int, tmp_path: Path) -> None:
    (tmp_path / "a.ko").write_text("a is a module")
    assert run(machine, *argv, str(tmp_path / "a.ko")) == 0
    assert machine.calls == [("insert", "a", "", flags)]


def test_the_kernels_words_stand_behind_kmods(
    machine: FakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a-b.ko"
    path.write_text("a_b is a module")
    machine.refuse["a_b"] = errno.ENOEXEC
    words = "a_b: version magic '1' should be '2'"
    monkeypatch.setattr(KernelLog, "about", lambda self, *names: [words] if names == ("a_b",) else [])
    assert run(machine, str(path)) == 1
    assert capfd.readouterr().err == (
        f"insmod: ERROR: could not insert module {path}: Invalid module format\n"
        f"insmod: ERROR: the kernel says: {words}\n"
    )


def test_the_kernel_calls_a_module_as_it_calls_itself(tmp_path: Path) -> None:
    path = tmp_path / "an-other.ko"
    path.write_bytes((compiled.modules() / "mod1.ko").read_bytes())
    assert insmod._names(str(path)) == {"an_other", "mod1"}
    path.write_bytes(b"rubbish")
    assert insmod._names(str(path)) == {"an_other"}


def test_it_is_told_once(machine: FakeMachine, tmp_path: Path) -> None:
    (tmp_path / "a.ko").write_text("a is a module")
    told: list[Outcome] = []
    for _ in range(2):
        run(machine, str(tmp_path / "a.ko"), told=told)
    assert [(outcome.module, outcome.result, outcome.request.origin) for outcome in told] == [
        ("a", "loaded", "operator"), ("a", "live", "operator"),
    ]  # fmt: skip
