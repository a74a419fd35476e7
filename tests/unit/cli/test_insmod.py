"""insmod beyond kmod's; tests/acting.py compares the rest with kmod 30."""

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
from tests.elf_maker import Maker
from tests.fake_machine import FakeMachine


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path)


def run(machine: FakeMachine, *argv: str, told: list[Outcome] | None = None) -> int:
    return insmod.main(list(argv), Machine(machine, (lambda _: None) if told is None else told.append))


@pytest.mark.parametrize("suffix", ["gz", "xz"])
def test_a_compressed_file_is_unpacked_first(machine: FakeMachine, suffix: str, tmp_path: Path) -> None:
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


def test_kernel_messages_are_found_by_the_name_of_the_file_and_of_the_module(
    machine: FakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[set[str]] = []

    def about(log: KernelLog, *names: str) -> list[str]:
        asked.append(set(names))
        return []

    monkeypatch.setattr(KernelLog, "about", about)
    machine.refuse["an_other"] = errno.ENOEXEC
    path = tmp_path / "an-other.ko"
    for image in (Maker().add(b".modinfo", b"license=GPL\0name=mod1\0").image(), b"rubbish"):
        path.write_bytes(image)
        assert run(machine, str(path)) == 1
    assert asked == [{"an_other", "mod1"}, {"an_other"}]


def test_a_load_is_recorded_once(machine: FakeMachine, tmp_path: Path) -> None:
    (tmp_path / "a.ko").write_text("a is a module")
    told: list[Outcome] = []
    for _ in range(2):
        run(machine, str(tmp_path / "a.ko"), told=told)
    assert [(outcome.module, outcome.result, outcome.request.origin) for outcome in told] == [
        ("a", "loaded", "operator"), ("a", "live", "operator"),
    ]  # fmt: skip


def test_the_record_has_the_absolute_path(
    machine: FakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is read elsewhere than it was written. Control: messages have the path as given, as kmod's."""
    (tmp_path / "a.ko").write_text("a is a module")
    monkeypatch.chdir(tmp_path)
    told: list[Outcome] = []
    assert run(machine, "./a.ko", told=told) == 0
    assert [outcome.path for outcome in told] == [str(tmp_path / "a.ko")]
    assert run(machine, "./a.ko", told=told) == 1
    assert "could not insert module ./a.ko: " in capfd.readouterr().err
