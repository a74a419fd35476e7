"""`systemd/kernel-helper`: sets and restores kernel.modprobe."""

from __future__ import annotations

import os
import shutil
import subprocess
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


def test_a_wrong_verb_prints_the_usage(setting: Setting) -> None:
    assert "usage" in setting("mask", expect=2)
    assert "usage" in setting("", expect=2)
