"""`systemd/kernel-helper`: sets and restores kernel.modprobe."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "systemd" / "kernel-helper"
JOB = "42 kmodd.service {} running"
"""A line of `systemctl list-jobs --no-legend`."""


class Setting:
    """The script in a made-up root, beside a made-up helper, with a made-up `systemctl`."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self._file = self.root / "proc/sys/kernel/modprobe"
        self._file.parent.mkdir(parents=True)
        self.value = "/sbin/modprobe"
        self.run = self.root / "run/kmodd"
        self.run.mkdir(parents=True)
        (self.run / "request").touch()
        self.helper = folder / "lib/kmodd-request"
        self.helper.parent.mkdir()
        self.helper.touch(0o755)
        shutil.copy(SCRIPT, self.helper.parent)
        self._programs = folder / "bin"
        self._programs.mkdir()
        self.systemd()

    @property
    def value(self) -> str:
        """kernel.modprobe."""
        return self._file.read_text().removesuffix("\n")

    @value.setter
    def value(self, value: str) -> None:
        self._file.write_text(f"{value}\n")

    @property
    def former(self) -> str | None:
        """The kept former value, or None."""
        path = self.root / "run/kmodd.modprobe"
        return path.read_text() if path.exists() else None

    def upgrade(self, former: Callable[[Path], object]) -> None:
        """Have the helper set by an earlier version, which kept the former value in /run/kmodd; `former` writes it."""
        self("set")
        (self.root / "run/kmodd.modprobe").unlink()
        former(self.run / "kernel.modprobe")

    def systemd(self, job: str = "", system: str = "running", unit: str = "active") -> None:
        """Set the answers of systemctl."""
        path = self._programs / "systemctl"
        path.write_text(
            "#!/bin/sh\ncase $1 in\n"
            f"list-jobs) echo '{JOB.format(job) if job else 'No jobs running.'}' ;;\n"
            f"is-system-running) echo {system}; [ {system} = running ] ;;\n"
            f"is-active) echo {unit}; [ {unit} = active ] ;;\nesac\n"
        )
        path.chmod(0o755)

    def close(self) -> None:
        """The policy is enforced."""
        (self.run / "closed").touch()

    def __call__(self, verb: str, result: str | None = None, expect: int = 0) -> str:
        """Run the script; `result`: with this SERVICE_RESULT, as systemd does at a service's end."""
        env = {"PATH": f"{self._programs}:{os.environ['PATH']}", "KMODD_ROOT": str(self.root)}
        if result is not None:
            env["SERVICE_RESULT"] = result
        command = [str(self.helper.parent / SCRIPT.name), verb]
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == expect, done.stdout
        return done.stdout


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


@pytest.mark.parametrize("value", ["/sbin/modprobe", "/opt/my own/modprobe", "/bin/true"])
@pytest.mark.parametrize("result", [None, "success", "signal", "watchdog", "oom-kill"])
def test_set_and_put_back_after_whatever_end(setting: Setting, value: str, result: str | None) -> None:
    setting.value = value
    assert setting("set") == ""
    assert setting.value == str(setting.helper)
    assert setting("unset", result) == ""
    assert setting.value == value
    assert setting.former is None


def test_set_twice_keeps_the_first_value(setting: Setting) -> None:
    setting("set")
    assert setting("set") == ""
    setting("unset")
    assert setting.value == "/sbin/modprobe"


def test_a_value_set_by_others_stays(setting: Setting) -> None:
    setting("set")
    setting.value = "/opt/modprobe"
    setting("unset")
    assert setting.value == "/opt/modprobe"
    setting.value = str(setting.helper)  # and what was kept is forgotten
    setting("unset")
    assert setting.value == str(setting.helper)


def test_empty_stays_empty(setting: Setting) -> None:
    """proc(5), /proc/sys/kernel/modprobe: an empty one switches autoloading off; that is an administrator's will."""
    setting.value = ""
    assert "is empty" in setting("set")
    assert setting.value == ""
    setting("unset")
    assert setting.value == ""


def test_emptied_while_kmodd_runs_stays_empty(setting: Setting) -> None:
    setting("set")
    setting.value = ""
    setting("unset", "signal")
    assert "is empty" in setting("set")
    assert setting.value == ""


def test_a_value_that_cannot_be_kept_stays(setting: Setting) -> None:
    """With a full /run, the former value could not be restored."""
    former = setting.root / "run/kmodd.modprobe"
    former.symlink_to("/dev/full")
    said = setting("set")
    assert f"Failed to write {former}: kernel.modprobe stays /sbin/modprobe" in said
    assert (setting.value, os.path.lexists(former)) == ("/sbin/modprobe", False)
    assert setting("set") == ""  # there is space again
    assert setting.value == str(setting.helper)


def test_without_the_daemons_socket_nothing_is_set(setting: Setting) -> None:
    (setting.run / "request").unlink()
    assert setting("set") == ""
    assert (setting.value, setting.former) == ("/sbin/modprobe", None)


def test_switched_off_it_restores_the_former_value(setting: Setting) -> None:
    """A crash under an enforced policy has left the helper set; the next daemon has no request socket."""
    setting("set")
    (setting.run / "request").unlink()
    setting("set")
    assert setting.value == "/sbin/modprobe"


def test_without_the_helper_nothing_is_set(setting: Setting) -> None:
    setting.helper.unlink()
    assert "is missing" in setting("set")
    assert (setting.value, setting.former) == ("/sbin/modprobe", None)


@pytest.mark.parametrize(
    ("job", "system", "result", "back"),
    [
        ("stop", "running", "success", True),
        ("stop", "degraded", "timeout", True),  # a daemon that hangs is what one stops
        ("stop", "stopping", "success", False),
        ("restart", "running", "success", False),
        ("", "running", "signal", False),
        ("", "running", "success", False),  # SIGTERM by another hand; it is started again
        ("", "running", None, True),
    ],
)
def test_under_an_enforced_policy_only_a_stop_puts_back(
    setting: Setting, job: str, system: str, result: str | None, back: bool
) -> None:
    setting("set")
    setting.close()
    setting.systemd(job, system)
    said = "The policy is no longer enforced" if back else "requests for modules are refused"
    assert said in setting("unset", result)
    assert setting.value == ("/sbin/modprobe" if back else str(setting.helper))
    setting("set")  # it starts again
    setting("unset")
    assert setting.value == "/sbin/modprobe"


@pytest.fixture
def packaged(setting: Setting) -> Setting:
    """The package's modprobe is the helper, by a hard link."""
    modprobe = setting.root / "sbin-modprobe"
    os.link(setting.helper, modprobe)
    setting.value = str(modprobe)
    return setting


def test_the_package_keeps_the_value(packaged: Setting) -> None:
    value = packaged.value
    for verb in ("set", "set", "unset", "set", "restore"):
        packaged(verb)
        assert (packaged.value, packaged.former) == (value, None)


@pytest.mark.parametrize("back", [True, False])
def test_with_the_package_a_stop_ends_an_enforced_policy(packaged: Setting, back: bool) -> None:
    """As without it, also in what is said; the end of a daemon that is not stopped leaves the flag."""
    packaged("set")
    packaged.close()
    packaged.systemd("stop" if back else "")
    said = "The policy is no longer enforced" if back else "requests for modules are refused"
    assert said in packaged("unset", "success")
    assert (packaged.run / "closed").exists() != back
    packaged("unset")
    assert packaged("unset") == ""


def test_the_package_replaces_make_install(setting: Setting) -> None:
    """Under an enforced policy too, the former value is back as soon as it is the helper itself."""
    modprobe = setting.root / "sbin-modprobe"
    modprobe.touch()
    setting.value = str(modprobe)
    setting("set")
    assert setting.value == str(setting.helper)
    setting.close()
    setting("set")
    assert setting.value == str(setting.helper), "as long as another program stands there"
    modprobe.unlink()
    os.link(setting.helper, modprobe)
    setting("set")
    assert (setting.value, setting.former) == (str(modprobe), None)
    assert (setting.run / "closed").exists()


@pytest.mark.parametrize(
    ("job", "result", "opens"), [("stop", "success", True), ("", "signal", False), ("", None, True)]
)
def test_the_package_lifts_an_enforced_policy_at_a_stop(
    packaged: Setting, job: str, result: str | None, opens: bool
) -> None:
    """What the value does for `make install`, the flag does: without it, the helper becomes the real modprobe."""
    packaged("set")
    packaged.close()
    packaged.systemd(job)
    packaged("unset", result)
    assert (packaged.run / "closed").exists() != opens


def test_restore_after_kmodd_has_failed(setting: Setting) -> None:
    setting("set")
    assert "not in state failed" in setting("restore")
    assert setting.value == str(setting.helper)
    setting.systemd(unit="failed")
    assert setting("restore") == ""
    assert setting.value == "/sbin/modprobe"


def test_restore_keeps_an_enforced_policy(setting: Setting) -> None:
    """A user who can crash kmodd once can reach the start limit."""
    setting("set")
    setting.close()
    setting.systemd(unit="failed")
    assert f"until root calls {setting.helper.parent}/kernel-helper unset" in setting("restore")
    assert setting.value == str(setting.helper)
    setting("unset")
    assert setting.value == "/sbin/modprobe"


# ── the former value of an earlier version, in /run/kmodd ────────────────────────────────────────────────────────────


def _content(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def _a_link(path: Path) -> None:
    target = path.parents[1] / "target"
    target.write_text("/usr/sbin/modprobe\n")
    path.symlink_to(target)


FORMER = {
    "/sbin/modprobe": (_content(b"/sbin/modprobe\n"), "/sbin/modprobe", True),
    "/usr/sbin/modprobe": (_content(b"/usr/sbin/modprobe\n"), "/usr/sbin/modprobe", True),
    "another path": (_content(b"/run/kmodd/evil\n"), "/sbin/modprobe", False),
    "another line": (_content(b"/usr/sbin/modprobe\n/run/kmodd/evil\n"), "/sbin/modprobe", False),
    "a longer path": (_content(b"/usr/sbin/modprobe/../../../run/kmodd/evil\n"), "/sbin/modprobe", False),
    "a pattern": (_content(b"/*/modprobe\n"), "/sbin/modprobe", False),
    "empty": (_content(b""), "/sbin/modprobe", False),
    "a binary": (_content(b"\x7fELF\0\xff" * 10000), "/sbin/modprobe", False),
    "a link": (_a_link, "/sbin/modprobe", False),
    "a link to nothing": (lambda path: path.symlink_to("/nothing"), "/sbin/modprobe", False),
    "a folder": (Path.mkdir, "/sbin/modprobe", False),
    "a pipe": (os.mkfifo, "/sbin/modprobe", False),
}
"""What writes the old file, the value that is restored, and whether it is that of the file."""


@pytest.mark.parametrize(("former", "value", "trusted"), FORMER.values(), ids=FORMER)
@pytest.mark.parametrize("verbs", [["unset"], ["set", "unset"], ["restore"]], ids=str)
def test_what_an_earlier_version_kept_is_restored(
    setting: Setting, former: Callable[[Path], object], value: str, trusted: bool, verbs: list[str]
) -> None:
    """The daemon, which is not trusted, can write there: anything but a path of modprobe is replaced by Debian's."""
    setting.upgrade(former)
    setting.systemd(unit="failed")
    said = [setting(verb) for verb in verbs]
    assert ("of an earlier version does not contain the path of modprobe: using /sbin/modprobe" in said[0]) != trusted
    assert (setting.value, setting.former) == (value, None)
    old = setting.run / "kernel.modprobe"
    assert old.is_dir() or (not os.path.lexists(old) and not any(said[1:]))
    target = setting.root / "run/target"
    assert not target.exists() or target.read_text() == "/usr/sbin/modprobe\n"


def test_an_upgrade_under_an_enforced_policy_keeps_it(setting: Setting) -> None:
    setting.upgrade(_content(b"/usr/sbin/modprobe\n"))
    setting.close()
    setting.systemd("restart")
    assert "requests for modules are refused" in setting("unset", "success")
    assert (setting.value, setting.former) == (str(setting.helper), "/usr/sbin/modprobe\n")
    assert setting("set") == ""
    setting.systemd("stop")
    assert "no longer enforced" in setting("unset", "success")
    assert setting.value == "/usr/sbin/modprobe"


def test_a_copy_of_the_former_value_is_not_the_daemons_file(setting: Setting) -> None:
    """A file that is moved could be written through another link or an open descriptor."""
    setting.upgrade(_content(b"/usr/sbin/modprobe\n"))
    other = setting.run / "other"
    os.link(setting.run / "kernel.modprobe", other)
    setting("set")
    other.write_text("/run/kmodd/evil\n")
    setting("unset")
    assert setting.value == "/usr/sbin/modprobe"


@pytest.mark.parametrize("now", ["/opt/modprobe", ""])
def test_a_fake_of_an_old_value_changes_no_value_of_others(setting: Setting, now: str) -> None:
    setting("set")
    (setting.run / "kernel.modprobe").write_text("/run/kmodd/evil\n")
    setting("unset")
    assert setting.value == "/sbin/modprobe", "the value that is kept in the new place comes first"
    (setting.run / "kernel.modprobe").write_text("/usr/sbin/modprobe\n")
    setting.value = now
    assert setting("unset") == ""
    assert (setting.value, setting.former) == (now, None)


def test_a_wrong_verb_prints_the_usage(setting: Setting) -> None:
    assert "usage" in setting("mask", expect=2)
    assert "usage" in setting("", expect=2)
