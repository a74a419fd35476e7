"""Runs in the guest as root: makes the kernel ask in many ways, and asks the listener each time who that was.

Usage: asking.py SOCKET FOLDER. FOLDER is where the helper (`HELPER` in test_requester.py) reports. Writes one JSON
object: case → what the listener told, and what is true.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

PYTHON = (sys.executable, "-IS", "-c")
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
ASK = "import socket\ntry: socket.socket(9, 2)\nexcept OSError: pass\n"
FORGED = "x\nsh-1 [000] d 1: module_request: evil"
COMMANDS = {
    "root": (*PYTHON, ASK),
    "nobody": (*NOBODY, *PYTHON, "open('/proc/self/comm', 'w').write('a) Z 1\\nb')\n" + ASK),
    "user namespace": (*NOBODY, "unshare", "--user", "--map-root-user", *PYTHON, ASK),
    "pid namespace": ("unshare", "--pid", "--fork", *PYTHON, ASK),
    "newline": (
        *NOBODY, "unshare", "--user", "--map-root-user", "--mount", "busybox", "mount", "-t", FORGED, "none", "/mnt",
    ),
}  # fmt: skip


class Asked:
    """What became known of a request when its helper asked."""

    def __init__(self, folder: Path, line: str) -> None:
        pid, _, name = line.partition(" ")
        self._answer, self.name = folder / pid, base64.b64decode(name)

    def answer(self) -> None:
        """Let the helper end: there is no such module."""
        self._answer.write_text("1\n")


class Bench:
    """The helper's side and the listener's side."""

    def __init__(self, path: str, folder: Path) -> None:
        self.folder = folder
        os.mkfifo(folder / "new")
        self._asks = os.open(folder / "new", os.O_RDWR)
        self._buffer = b""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.connect(path)
        self.opened = json.loads(self._listener.recv(65536))
        self.spent: list[int] = []

    def asked(self) -> Asked:
        """Wait until a helper asks."""
        while b"\n" not in self._buffer:
            if not select.select([self._asks], [], [], 60)[0]:
                raise TimeoutError("no helper has asked")
            self._buffer += os.read(self._asks, 4096)
        line, _, self._buffer = self._buffer.partition(b"\n")
        return Asked(self.folder, line.decode())

    def tell(self, *words: str) -> Any:
        self._listener.send(" ".join(words).encode())
        return json.loads(self._listener.recv(65536))

    def match(self, name: bytes) -> Any:
        """Who asked for `name`, by the listener."""
        answer = self.tell("match", base64.b64encode(name).decode())
        self.spent.append(answer["us"])
        return answer["who"]

    def one(self) -> Any:
        """The next helper, its requester, its end."""
        asked = self.asked()
        who = self.match(asked.name)
        asked.answer()
        return who


def started(*command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)


def family(*before: str, script: str = ASK) -> subprocess.Popen[bytes]:
    """A process that asks for net-pf-9 (X.25, which this kernel has not), run by what stands before it."""
    return started(*before, *PYTHON, script)


def ask_here() -> None:
    """This thread asks for it."""
    with contextlib.suppress(OSError):
        socket.socket(9, socket.SOCK_DGRAM)


def single(bench: Bench, *command: str) -> dict[str, Any]:
    """One requester; and is there one of the name that it may have forged?"""
    process = started(*command)
    asked = bench.asked()
    forged = bench.match(b"evil")
    result = {"who": bench.match(asked.name), "pid": process.pid, "name": os.fsdecode(asked.name), "forged": forged}
    asked.answer()
    process.wait()
    return result


def thread(bench: Bench) -> dict[str, Any]:
    """A thread of this process, whose number is not the process's."""
    tids: list[int] = []

    def ask() -> None:
        tids.append(threading.get_native_id())
        ask_here()

    asking = threading.Thread(target=ask)
    asking.start()
    who = bench.one()
    asking.join()
    return {"who": who, "pid": os.getpid(), "tid": tids[0]}


def service(bench: Bench) -> dict[str, Any]:
    """A unit of the system, which leaves its own name to a cgroup below."""
    script = "/run/asking-service.py"
    Path(script).write_text(ASK)
    unit = f"[Service]\nExecStart={sys.executable} -IS {script}\nUser=daemon\nDefaultDependencies=no\n"
    Path("/run/systemd/system/asker.service").write_text(unit)
    subprocess.run(["systemctl", "start", "--no-block", "asker.service"], check=True)
    return {"who": bench.one()}


def twice(bench: Bench) -> dict[str, Any]:
    """One process asks for one name twice."""
    process = family(script=ASK * 2)
    return {"who": [bench.one(), bench.one()], "pid": process.pid, "end": process.wait()}


def together(bench: Bench, *before: tuple[str, ...]) -> dict[str, Any]:
    """Several ask for one name at once; each request is listed before any is answered."""
    processes = [family(*words) for words in before]
    asks = [bench.asked() for _ in processes]
    who = [bench.match(asked.name) for asked in asks]
    for asked in asks:
        asked.answer()
    for process in processes:
        process.wait()
    process = family()
    after = {"who": bench.one(), "pid": process.pid}
    process.wait()
    return {"who": who, "pids": [process.pid for process in processes], "after": after}


def killed(bench: Bench) -> dict[str, Any]:
    """The requester is killed before its event was read: nothing can be told any more."""
    process = family(*NOBODY)
    asked = bench.asked()
    process.kill()
    process.wait()
    who = bench.match(asked.name)
    asked.answer()
    return {"who": who}


def end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def reused(bench: Bench) -> dict[str, Any]:
    """As `killed`, and then its number goes to another process."""
    process = family(*NOBODY)
    asked = bench.asked()
    process.kill()
    process.wait()
    other = 0
    while other != process.pid:  # another process may fork between
        if other:
            end(other)
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(process.pid - 1))
        other = os.fork()
        if other == 0:
            signal.pause()
    who = bench.match(asked.name)
    asked.answer()
    end(other)
    return {"who": who, "pid": process.pid, "other": other}


def young(bench: Bench) -> dict[str, Any]:
    """Processes that ask as soon as they are there, in the tick in which they start."""
    found, wchan = [], ""
    for _ in range(20):
        child = os.fork()
        if child == 0:
            ask_here()
            os._exit(0)
        asked = bench.asked()
        wchan = Path(f"/proc/{child}/wchan").read_text()
        who = bench.match(asked.name)
        asked.answer()
        os.waitpid(child, 0)
        found.append(who is not None and who["pid"] == child)
    return {"found": found, "wchan": wchan}


def lost(bench: Bench) -> dict[str, Any]:
    """More events than the buffer holds: the next requester is unknown."""
    instance = Path("/sys/kernel/tracing/instances/listener")
    helper = Path("/proc/sys/kernel/modprobe")
    (instance / "buffer_size_kb").write_text("8")
    usual = helper.read_text()
    helper.write_text("/nonexistent")
    for _ in range(1000):
        ask_here()
    helper.write_text(usual)
    process = family()
    who = bench.one()
    process.wait()
    return {"who": who}


def main() -> None:
    bench = Bench(sys.argv[1], Path(sys.argv[2]))
    results: dict[str, Any] = {"opened": bench.opened}
    for case, command in COMMANDS.items():
        results[case] = single(bench, *command)
    results["thread"] = thread(bench)
    results["service"] = service(bench)
    results["twice"] = twice(bench)
    results["alike"] = together(bench, NOBODY, NOBODY)
    results["different"] = together(bench, (), NOBODY)
    results["killed"] = killed(bench)
    results["reused"] = reused(bench)
    results["young"] = young(bench)
    results["match_us"] = sorted(bench.spent)
    results["drain_us"] = sorted(bench.tell("drain")["us"] for _ in range(20))
    results["lost"] = lost(bench)
    results["close"] = bench.tell("close")
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
