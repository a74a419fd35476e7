"""The file with the byte code of all modules: read in place of the single files, and only where it fits the sources."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kmodd.cli.byte_code import HEADER
from tests.control_server import ControlServer
from tests.installation import run


@pytest.fixture
def installed(prefix: Path, tmp_path: Path) -> Path:
    """A copy of the installation, whose launcher uses the copy; times of sources are kept."""
    copy = tmp_path / "usr"
    shutil.copytree(prefix, copy, symlinks=True)
    launcher = copy / "bin/kmodd"
    launcher.write_text(launcher.read_text().replace(str(prefix), str(copy)))
    return copy


def bundle(installed: Path) -> Path:
    """The file with the byte code."""
    (found,) = (installed / "lib/kmodd").glob("byte-code.*")
    return found


def single_files(installed: Path) -> list[str]:
    """Names of kmodd's modules that `kmodd explain --help` imports from their own files, but for what finds the one."""
    traced = run(["strace", "-f", "-e", "trace=openat", installed / "bin/kmodd", "explain", "--help"])
    assert "usage: kmodd explain" in traced.stdout
    opened = re.findall(r"lib/kmodd/kmodd/(\S*)__pycache__/(\w+)\.\S+\.pyc", traced.stdout)
    return sorted({folder + name for folder, name in opened} - {"__init__", "cli/__init__", "cli/byte_code"})


def test_all_modules_come_from_the_one_file(installed: Path) -> None:
    assert single_files(installed) == []


def truncated(installed: Path) -> None:
    os.truncate(bundle(installed), bundle(installed).stat().st_size // 2)


def empty(installed: Path) -> None:
    os.truncate(bundle(installed), 0)


def zeros(installed: Path) -> None:
    bundle(installed).write_bytes(bytes(bundle(installed).stat().st_size))


def entries_of_zeros(installed: Path) -> None:
    with bundle(installed).open("r+b") as file:
        file.seek(HEADER)
        file.write(bytes(4096))


def of_another_python(installed: Path) -> None:
    data = bytearray(bundle(installed).read_bytes())
    data[0] ^= 1
    bundle(installed).write_bytes(data)


def absent(installed: Path) -> None:
    bundle(installed).unlink()


@pytest.mark.parametrize("damage", [truncated, empty, zeros, entries_of_zeros, of_another_python, absent])
def test_a_file_that_does_not_fit_is_not_used(installed: Path, damage: Callable[[Path], None]) -> None:
    damage(installed)
    assert "cli/__main__" in single_files(installed)


def test_blocks_of_zeros_in_the_code_are_compiled_from_the_sources(installed: Path) -> None:
    """As after a power cut; all code is lost here, and the list of it is whole."""
    with bundle(installed).open("r+b") as file:
        head = file.read(HEADER)
        start = HEADER + int.from_bytes(head[-4:], "big")
        file.seek(start)
        file.write(bytes(bundle(installed).stat().st_size - start))
    assert run([installed / "bin/kmodd", "--version"]).stdout.startswith("kmodd ")


def test_an_edited_source_is_compiled_again(installed: Path) -> None:
    source = installed / "lib/kmodd/kmodd/cli/features.py"
    source.write_text(source.read_text().replace('return f"kmodd {', 'return f"edited {'))
    assert run([installed / "bin/kmodd", "--version"]).stdout.startswith("edited ")


@pytest.mark.parametrize(("pin", "imported"), [("byte_code.pin()", "old"), ("", "new")])
def test_a_pinned_process_outlives_an_upgrade(installed: Path, pin: str, imported: str) -> None:
    """A module that it imports after its source was replaced fits those that it has, without the pin it does not."""
    lib = installed / "lib/kmodd"
    code = (
        f"import sys; sys.path.insert(0, {str(lib)!r})\n"
        f"from kmodd.cli import byte_code; byte_code.use({str(lib)!r}); {pin}\n"
        f"open({str(lib / 'kmodd/text.py')!r}, 'w').write('NEW = 1')\n"
        "import kmodd.text; print('new' if hasattr(kmodd.text, 'NEW') else 'old')"
    )
    assert run(["/usr/bin/python3", "-BISXutf8", "-c", code]).stdout == f"{imported}\n"


@pytest.mark.parametrize("verb", ["run", "loader"])
def test_daemon_and_spawner_are_pinned(installed: Path, verb: str) -> None:
    """All sources are looked at once they start; a tool, the control, looks only at those that it imports."""

    def looked_at(*words: str) -> int:
        command = ["strace", "-f", "-e", "trace=%stat,%lstat,newfstatat", str(installed / "bin/kmodd"), *words]
        traced = run(command).stdout
        return len(set(re.findall(r"lib/kmodd/kmodd/(\S+)\.py\"", traced)))

    every = len(list((installed / "lib/kmodd/kmodd").rglob("*.py")))
    # Each ends at once, for lack of a module tree and of a connection.
    missing = str(installed / "missing")
    words = ["run", "--root", missing, "--here", missing] if verb == "run" else ["loader", "--fd", "0"]
    assert looked_at(*words) >= every
    assert looked_at(verb, "--help") < every


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_do_not_take_the_place_of_the_file(installed: Path, closed: str) -> None:
    """The kernel and init systems start programs so."""
    done = run(["sh", "-c", f'"$0" lookup --root /nowhere x {closed}', installed / "bin/kmodd"])
    assert done.returncode == 3
    assert "Traceback" not in done.stdout


def test_tracebacks_name_the_source(installed: Path) -> None:
    code = "from kmodd.cli import byte_code; byte_code.use({0!r}); import kmodd.names; kmodd.names.module_name(3)"
    lib = str(installed / "lib/kmodd")
    done = run(["/usr/bin/python3", "-BIc", f"import sys; sys.path.insert(0, {lib!r}); {code.format(lib)}"])
    assert "lib/kmodd/kmodd/names.py" in done.stdout


def status(installed: Path, server: ControlServer) -> str:
    """The output of `kmodd status`, which `server` answers."""
    command = [str(installed / "bin/kmodd"), "status", "--socket", server.socket.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert select.select([server.socket], [], [], 60)[0]
        server.socket.accept()
        connection = server.socket.connections[-1]
        while connection.fileno() >= 0 and process.poll() is None and select.select([connection], [], [], 60)[0]:
            server.socket.receive(connection)
            while server.handler.handle_call():
                pass
            if not server.socket.connections:
                break
        return process.communicate(timeout=60)[0]


def test_lint_and_status_name_the_command_after_an_upgrade_of_python(installed: Path, server: ControlServer) -> None:
    """The file is of another Python; the command makes one of this Python, and removes the other."""
    lint = [str(installed / "bin/kmodd"), "lint", "--kernel", "none"]
    for said in (run(lint).stdout, status(installed, server)):
        assert "byte-code" not in said
    old = bundle(installed).rename(bundle(installed).with_suffix(".cpython-310"))
    said = run(lint).stdout
    assert said.startswith(f"{old}: warning: not of Python 3.")
    assert f"Problem: {old}: not of Python 3." in status(installed, server)
    (command,) = re.findall(r"run as root: (.*) \[byte-code\]$", said, re.MULTILINE)
    assert run(command.split()).returncode == 0
    assert not old.exists()
    for said in (run(lint).stdout, status(installed, server)):
        assert "byte-code" not in said
    assert single_files(installed) == []
