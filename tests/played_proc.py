"""A /proc below a folder, with the thread that asks for a module."""

from __future__ import annotations

from pathlib import Path

from kmodd.host.process import Namespaces, initial_namespaces
from kmodd.kernel.requester import Requester

CGROUP = "/user.slice/user-1000.slice/user@1000.service/app.slice/sshd.service"
WHO = Requester(178, "a) S 1\nUid:\t0", "/opt/x", 1000, 1001, CGROUP, "user@1000.service", False)


WAITING = "call_usermodehelper_exec"
"""The kernel function in which a thread waits for its helper."""


def played(root: Path, start: int = 900, state: str = "D", wchan: str = WAITING) -> Namespaces:
    """Thread 179 of process 178, and PID 1; returns the initial namespaces."""
    for tid in ("1", "179"):
        (root / tid / "ns").mkdir(parents=True)
    for name in ("user", "pid"):
        (root / "1/ns" / name).touch()
        (root / "179/ns" / name).symlink_to(root / "1/ns" / name)
    folder = root / "179"
    (folder / "status").write_text("Name:\ta) S 1\\nUid:\\t0\nTgid:\t178\nPid:\t179\nUid:\t1000\t0\t0\t0\n")
    stat = f"179 (a) S 1\nUid:\t0) {state} 1 178 178 0 -1 64 0 0 0 0 0 0 0 0 20 0 2 0 {start} 1000 10 0\n"
    (folder / "stat").write_text(stat)
    (folder / "exe").symlink_to(WHO.exe)
    (folder / "loginuid").write_text("1001")
    (folder / "cgroup").write_text(f"1:name=systemd:/x.service\n0::{CGROUP}\n")
    (folder / "wchan").write_text(wchan)
    return initial_namespaces(str(root))
