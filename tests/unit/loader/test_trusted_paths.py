"""Files that a loader accepts: their place, their owner, their mode."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kmodd.dataclass import replace
from kmodd.errors import Where
from kmodd.loader.protocol import CommandRequest, InsmodRequest
from kmodd.loader.trusted_paths import Trusted
from tests.fakes import FakeKernel
from tests.loader_harness import Served, install_line, run_command


def spoil(path: Path, how: str) -> None:
    """Make a path writable by others."""
    if how == "owner":
        os.chown(path, 65534, -1)
    else:
        path.chmod(path.stat().st_mode | {"group": 0o020, "others": 0o002, "sticky": 0o1002}[how])


def tree(folder: Path) -> Path:
    """A module in the middle of a tree."""
    path = folder / "6.1/kernel/a.ko"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x7fELF module")
    return path


AS_ROOT = pytest.param("owner", marks=pytest.mark.root)


@pytest.mark.parametrize("place", ["6.1/kernel/a.ko", "6.1/kernel", "6.1", "."])
@pytest.mark.parametrize("how", ["group", "others", AS_ROOT])
def test_a_module_writable_by_others_is_refused(
    served: Served, kernel: FakeKernel, tmp_path: Path, place: str, how: str
) -> None:
    path = tree(tmp_path)
    assert served.do(InsmodRequest(str(path), "")).errno == 0
    spoil(tmp_path / place, how)
    answer = served.do(InsmodRequest(str(path), ""))
    assert (answer.errno, answer.stage) == (errno.EACCES, "file")
    words = {"group": "writable by its group", "others": "writable by others", "owner": "owned by uid 65534"}
    assert words[how] in answer.detail
    assert str(path) in answer.detail
    assert (f"lies in {tmp_path / place}, which" in answer.detail) == (place != "6.1/kernel/a.ko")
    assert len(kernel.calls) == 1


@pytest.mark.root
def test_in_a_sticky_directory_only_roots_entries_are_accepted(served: Served, tmp_path: Path) -> None:
    path = tree(tmp_path)
    spoil(path.parent, "sticky")
    assert served.do(InsmodRequest(str(path), "")).errno == 0
    os.chown(path, 65534, -1)
    assert "owned by uid 65534" in served.do(InsmodRequest(str(path), "")).detail


def test_links_are_followed_to_what_is_roots_and_nothing_is_named_outside_of_a_tree(
    kernel: FakeKernel, tmp_path: Path
) -> None:
    """weak-updates links one kernel's module into another's tree; a build folder may be writable by any user."""
    path = tree(tmp_path / "modules")
    outside = tree(tmp_path / "store")
    loose = tree(tmp_path / "build")
    spoil(loose.parent, "others")
    for name, target in (("weak", path), ("store", outside), ("dkms", loose)):
        (path.parent / f"{name}.ko").symlink_to(target)
    served = Served(kernel, Trusted((str(tmp_path / "modules"), str(tmp_path / "none"))))
    try:
        assert served.do(InsmodRequest(f"{path.parent}/weak.ko", "")).errno == 0
        assert served.do(InsmodRequest(f"{path.parent}/store.ko", "")).errno == 0
        elsewhere = f"is not below {tmp_path}/modules or {tmp_path}/none"
        for name, why in (
            (f"{path.parent}/dkms.ko", f"is a link to {loose}, and {loose.parent} is writable by others"),
            (str(outside), elsewhere),
            (f"{tmp_path}/modules/../store/6.1/kernel/a.ko", elsewhere),
        ):
            answer = served.do(InsmodRequest(name, ""))
            assert (answer.errno, answer.stage) == (errno.EACCES, "file")
            assert answer.detail == f"{name}: {why}"
        assert kernel.calls == [("a.ko", "", 0)] * 2
    finally:
        served.close()


def test_a_tree_may_be_a_link_itself(kernel: FakeKernel, tmp_path: Path) -> None:
    """As /lib is on a merged /usr."""
    tree(tmp_path / "usr/lib/modules")
    (tmp_path / "lib").symlink_to("usr/lib")
    served = Served(kernel, Trusted((f"{tmp_path}/lib/modules",)))
    try:
        assert served.do(InsmodRequest(f"{tmp_path}/lib/modules/6.1/kernel/a.ko", "")).errno == 0
    finally:
        served.close()


def test_a_folder_with_the_prefix_of_the_tree_is_outside(kernel: FakeKernel, tmp_path: Path) -> None:
    path = tree(tmp_path / "modules-of-mine")
    served = Served(kernel, Trusted((str(tmp_path / "modules"),)))
    try:
        assert "is not below" in served.do(InsmodRequest(str(path), "")).detail
    finally:
        served.close()


def test_a_pipe_is_refused_without_waiting(served: Served, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.ko", 0o644)
    answer = served.do(InsmodRequest(f"{tmp_path}/pipe.ko", ""))
    assert (answer.errno, answer.stage) == (errno.EACCES, "file")
    assert answer.detail == f"{tmp_path}/pipe.ko: is not a regular file"


@pytest.mark.parametrize("how", ["group", "others", AS_ROOT])
@pytest.mark.parametrize("place", ["a.conf", "."])
def test_a_command_in_a_file_writable_by_others_is_not_run(tmp_path: Path, place: str, how: str) -> None:
    call = install_line(tmp_path, f"touch {tmp_path}/told")
    spoil(tmp_path / "etc/modprobe.d" / place, how)
    answer = run_command(Trusted.below(str(tmp_path)), call)
    assert (answer.errno, answer.stage) == (errno.EACCES, "command")
    assert answer.detail.startswith("/etc/modprobe.d/a.conf: ")
    assert "writable by" in answer.detail or "owned by uid 65534" in answer.detail
    assert not (tmp_path / "told").exists()


def test_commands_are_read_from_the_configuration_only(tmp_path: Path) -> None:
    trusted, release = Trusted.below(str(tmp_path)), os.uname().release
    for name in (f"lib/modules/{release}", "home"):
        (tmp_path / name).mkdir(parents=True)
    call = install_line(tmp_path, "true")
    assert run_command(trusted, call).errno == 0
    elsewhere = install_line(tmp_path / "home", "true")
    answer = run_command(trusted, elsewhere)
    assert answer.detail == f"{elsewhere.real_file}: is not {tmp_path}/etc/modprobe.d/a.conf"
    softdep = tmp_path / f"lib/modules/{release}/modules.softdep"
    softdep.write_text("# by depmod\ninstall bar true\n")
    at = Where(f"/lib/modules/{release}/modules.softdep", 2)
    assert run_command(trusted, CommandRequest("install", "bar", at, str(softdep))).errno == 0
    other = softdep.with_name("modules.order")
    softdep.rename(other)
    at = Where(f"/lib/modules/{release}/modules.order", 2)
    assert "is not in" in run_command(trusted, CommandRequest("install", "bar", at, str(other))).detail
    swapped = CommandRequest("install", "foo", Where("/other.conf", 2), call.real_file)
    assert f"is not {tmp_path}/other.conf" in run_command(trusted, swapped).detail


def test_another_root_directory_is_refused_even_if_its_configuration_is_a_link_to_the_usual_one(tmp_path: Path) -> None:
    """Below it a daemon that was taken over could write proc/cmdline, whose options become words of the shell."""
    call = install_line(tmp_path, "echo $CMDLINE_OPTS")
    other = tmp_path / "run/r"
    (other / "etc").mkdir(parents=True)
    (other / "etc/modprobe.d").symlink_to(tmp_path / "etc/modprobe.d")
    (other / "proc").mkdir()
    (other / "proc/cmdline").write_text("foo.x=$(id)\n")
    answer = run_command(Trusted.below(str(tmp_path)), replace(call, real_file=f"{other}{call.at.file}"))
    assert (answer.errno, answer.output) == (errno.EACCES, "")


def test_a_file_is_not_opened_before_its_directory_is_known(tmp_path: Path) -> None:
    """A link in the place of the directory could lead elsewhere between the open and the check."""
    trusted = Trusted.below(str(tmp_path))
    conf = tmp_path / "etc/modprobe.d"
    conf.mkdir(parents=True)
    (conf / "a.conf").touch()
    (tmp_path / "link").symlink_to(conf)
    os.close(trusted.open_config(f"{conf}/a.conf"))
    for path in (f"{tmp_path}/link/a.conf", f"{conf}/../modprobe.d/a.conf", f"{tmp_path}/link/modules.softdep"):
        with pytest.raises(PermissionError):
            trusted.open_config(path)


def test_a_link_out_of_the_configuration_is_followed_through_roots_directories(tmp_path: Path) -> None:
    """Debian's alternatives: /etc/modprobe.d/nvidia.conf leads to /etc/nvidia. Each directory on the way is root's."""
    conf = tmp_path / "a-longer-name-than-the-other"
    conf.mkdir()
    (conf / "good.conf").symlink_to("/etc/passwd")
    (conf / "bad.conf").symlink_to(tmp_path / "loose/inner/file")
    (tmp_path / "loose/inner").mkdir(parents=True)
    (tmp_path / "loose/inner/file").touch()
    (tmp_path / "loose").chmod(0o777)
    trusted = Trusted(conf=(str(conf),))
    os.close(trusted.open_config(f"{conf}/good.conf"))
    with pytest.raises(OSError, match=f"lies in {tmp_path}/loose, which is writable by others"):
        trusted.open_config(f"{conf}/bad.conf")
    conf.chmod(0o777)  # any user could have made the link
    with pytest.raises(OSError, match=f"lies in {conf}, which is writable by others"):
        trusted.open_config(f"{conf}/good.conf")


def test_places_as_options_say_the_same_again(tmp_path: Path) -> None:
    words = Trusted.below("/x").words()
    assert words[:4] == ["--tree", "/x/lib/modules", "--tree", "/x/usr/lib/modules"]
    assert words[4:6] == ["--conf", "/x/etc/modprobe.d"]
    assert words[-4:] == ["--sys", "/x/sys", "--root", "/x"]
    assert Trusted.below("") == Trusted()
