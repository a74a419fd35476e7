"""Which install commands are known to load nothing."""

from __future__ import annotations

import pytest

from kmodd.planning.refusals import PROGRAMS, Refusal, refusal_of


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("/bin/false", 1), ("/usr/bin/false", 1), ("/sbin/false", 1), ("/bin//false", 1), ("false", 1), (" false ", 1),
        ("'/bin/false'", 1), ("exec /bin/false", 1), ("/bin/false # CVE-1", 1),
        ("/bin/false # don't; load", 1), ('/bin/false "a # b"', 1), ("/bin/false $CMDLINE_OPTS", 1),
        ("/bin/false x", 1), ("/bin/true", 0), ("/usr/bin/true", 0), ("true", 0), (":", 0), ("exit", 0), ("exit 0", 0),
        ("exit 1", 1), ("exit 257", 1), ("/usr/bin/disabled-network-by-security-misc", 1),
        ("/bin/disabled-filesys-by-security-misc", 1),
    ],
)  # fmt: skip
def test_a_certain_refusal(command: str, status: int) -> None:
    assert refusal_of(command) == Refusal(status, is_certain=True)


@pytest.mark.parametrize(
    "command",
    [
        "/opt/false", "/usr/local/bin/false", "/nix/store/x/bin/true", "disabled-network-by-security-misc",
        "/usr/bin/disabled-x-by-hardening",
    ],
)  # fmt: skip
def test_a_probable_refusal(command: str) -> None:
    """The command is run: it may do more than to refuse."""
    refusal = refusal_of(command)
    assert refusal
    assert not refusal.is_certain
    assert not refusal.is_last


@pytest.mark.parametrize(
    "command",
    [
        "logger no; /bin/false", "echo no >&2; exit 1", "/bin/echo no && /bin/false", "echo no; false;",
        "echo use modprobe -i > /dev/kmsg; exit 1", "/usr/bin/logger no 2>/dev/null || true; exit 0",
        "echo no; /opt/false",
    ],
)  # fmt: skip
def test_a_refusal_after_commands_that_load_nothing_is_probable(command: str) -> None:
    refusal = refusal_of(command)
    assert refusal
    assert (refusal.is_certain, refusal.is_last) == (False, True)


@pytest.mark.parametrize(
    "command",
    [
        "", "/sbin/modprobe -i x", "/sbin/modprobe -i x; /bin/true", "modprobe -i x || exit 1", "/bin/falsehood",
        "exit x",
        "exit 1 2", "exit $X", "/bin/sh", "false; /sbin/insmod x.ko", "/bin/:", "/opt/exit", "true || kmod insert x",
        "/bin/true; /bin/mount-it", "/usr/local/sbin/mymod-setup || exit 1",
        "test -e /etc/x && /usr/local/sbin/load-m0; exit 0", ". /etc/lib.sh; true", "/opt/x && /opt/y; true",
        "echo $(/opt/x); exit 1", "echo no | /opt/x; exit 1", "echo 1 > /sys/bus/pci/rescan; exit 0",
        "/opt/echo; exit 1", '/bin/true "a # b"; modprobe -i m', "/bin/true 'a # b'; modprobe -i m",
        "/bin/true \\ # b; modprobe -i m", 'echo "a # b"; /opt/x; exit 1',
    ],
)  # fmt: skip
def test_a_command_whose_effect_is_not_known(command: str) -> None:
    assert refusal_of(command) is None


def test_programs_are_named_by_their_resolved_path() -> None:
    assert all(path.startswith("/usr/bin/") for path in PROGRAMS)
