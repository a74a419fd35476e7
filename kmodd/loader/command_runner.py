"""The command runner: a process that runs one install or remove command of modprobe.d for the daemon.

A command runs as it does under udevd: as root, in the machine's own file system, with all capabilities. Under systemd
the runner is an instance of kmodd-command@.service, without sandbox; elsewhere the spawner forks it.

The daemon is not trusted. It sends a module and a line of a file; the runner reads the command from that line, and the
module's options, $CMDLINE_OPTS, from the configuration, both from files that `Trusted` accepts. The daemon can have a
command run that the administrator has written for the module, and no other.

The runner outlives the daemon. It takes in the orphans of the command, so that it is an ancestor of every process of
the command, whatever these do to environment, session and parents (`in_process.must_not_wait`). After the command has
ended it replies, and stays until the processes that the command has left behind have ended, as they may still write to
its pipe.
"""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import sys
import threading
import time

from kmodd.config import modprobe_d
from kmodd.index.fnmatch import Patterns
from kmodd.loader.actions import start_command
from kmodd.loader.protocol import MAX_STEP, CommandRequest, decode_command, encode_reply
from kmodd.loader.worker import name_process
from kmodd.names import module_name
from kmodd.planning.reply import Reply
from kmodd.text import decode, duration, escaped_end

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kmodd.config.modprobe_d import Config
    from kmodd.host.journal import Journal
    from kmodd.loader.trusted_paths import Trusted
    from kmodd.planning.outcome import Result
    from kmodd.planning.record import Record

OUTPUT_LIMIT = 4096
"""Bytes of output in a reply; earlier output is dropped."""

_MAX_SHOWN = 80
"""Characters of the last line of output in a message."""

_MODULE = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*")

_OF_THE_SOCKET = ("LISTEN_", "REMOTE_")
"""Environment variables that systemd sets for the runner, not for the command (systemd.exec(5))."""

_PIPE_SIZE = 65536
"""Bytes that a pipe holds (pipe(7)): a command that has ended has left no more to read."""

_PR_SET_CHILD_SUBREAPER = 36


def serve(connection: int, trusted: Trusted, journal: Callable[[], Journal] | None = None) -> None:
    """Serve the one request of a connection, an open descriptor.

    `journal`: opens the journal for the record that the runner writes if the daemon has ended before the command; None:
    journald, or standard error where it does not run.
    """
    _prepare()
    try:
        os.write(connection, b"%d" % os.getpid())
        datagram = os.read(connection, MAX_STEP)
    except OSError:
        return  # The daemon is gone; the next one asks again.
    if not datagram:
        return
    begin = time.monotonic_ns()
    run = request = None
    try:
        request = decode_command(datagram)
        run = _start(request, trusted)
        reply = run.reply(request, begin)
    except ValueError as why:
        reply = Reply(errno.EPROTO, "command", 0, f"invalid request: {why}")
    except OSError as error:
        code, place = error.errno or errno.EIO, f"{error.filename}: " if error.filename else ""
        reply = Reply(code, "command", _usec(begin), f"{place}{error.strerror}")
    delivery = threading.Thread(target=_deliver, args=(connection, request, reply, journal or _journal))
    delivery.start()
    if run:
        run.wait_for_rest()
    delivery.join()


def _deliver(connection: int, request: CommandRequest | None, reply: Reply, journal: Callable[[], Journal]) -> None:
    """Send the reply and close the connection after the daemon; write a record if the daemon has not read the reply."""
    try:
        os.write(connection, encode_reply(reply))
        while os.read(connection, MAX_STEP):  # ECONNRESET: the daemon has ended with data unread (unix(7))
            pass
    except OSError:
        if request:
            opened = journal()
            opened.write(_late_record(request, reply))
            opened.close()
    finally:
        os.close(connection)


def _prepare() -> None:
    """Set what the command inherits, and take in its orphans."""
    name_process("kmodd-command")
    os.chdir("/")
    os.umask(0o022)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as the parent may have left it, it would lose the status
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _usec(begin: int) -> int:
    return (time.monotonic_ns() - begin) // 1000


# -- the command ---------------------------------------------------------------------------------------------------


def _start(request: CommandRequest, trusted: Trusted) -> _Run:
    """Read the command and its options, and start it. Raises OSError: a file is not accepted, or no shell starts."""
    root = trusted.root  # of this process: below another one the daemon could have written files
    if request.real_file != root + request.at.file:
        raise OSError(errno.EACCES, f"is not {root}{request.at.file}", request.real_file)
    if not _MODULE.fullmatch(request.module):  # the command may pass $MODPROBE_MODULE on to a shell
        raise OSError(errno.EINVAL, f"{request.module!r} is no name of a module", str(request.at))
    config, notes = _config(root, trusted)
    command = _command(request, trusted, config)
    options = ""
    if request.kind == "install" and "$CMDLINE_OPTS" in command:
        options = _options(request, root, config)
    else:
        notes = []
    try:
        return _Run(command, options, request.module, "".join(notes).encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise OSError(error.errno, error.strerror, "/bin/sh") from None


def _config(root: str, trusted: Trusted) -> tuple[Config, list[str]]:
    """Return the configuration, and a line of text for each file that was not accepted."""
    from kmodd.host.tree import Tree  # here: the runner replies to the daemon before

    notes = []

    def read(path: str) -> bytes | None:
        try:
            return _read(path, trusted)
        except OSError as error:
            if error.errno != errno.ENOENT and not _is_mask(path):
                notes.append(f"kmodd: Ignoring options in {path}: {error.strerror}\n")
            return None

    return Tree(root).config(read), notes


def _is_mask(path: str) -> bool:
    """Return whether a file is a link to /dev/null, which hides files of its name (modprobe.d(5))."""
    return os.path.realpath(path) == os.devnull


def _command(request: CommandRequest, trusted: Trusted, config: Config) -> str:
    """Return the command of the line, which must be in force for the module. Raises OSError."""
    try:
        text = _read(request.real_file, trusted)
    except OSError as error:
        raise OSError(error.errno, error.strerror, request.at.file) from None
    own = modprobe_d.parse_file(modprobe_d.ConfFile(request.at.file, decode(text)))
    if request.at not in [line.at for line in (own.installs if request.kind == "install" else own.removes)]:
        article = "an" if request.kind == "install" else "a"
        raise OSError(errno.EINVAL, f"the line is not {article} {request.kind} command any more", str(request.at))
    in_force = config.installs if request.kind == "install" else config.removes
    matching = (line for line in in_force if Patterns([line.pattern]).fitting(request.module))
    # The second: as the look-up by the name of a command has it.
    named = (line for line in in_force if module_name(line.pattern.partition(".")[0]) == request.module)
    for line in (next(matching, None), next(named, None)):
        if line and line.at == request.at:
            return line.command
    raise OSError(errno.EINVAL, f"the {request.kind} command is not for {request.module}", str(request.at))


def _options(request: CommandRequest, root: str, config: Config) -> str:
    """Return the module's options, joined with blanks."""
    from kmodd.host.tree import Tree  # here: few commands need these
    from kmodd.index.catalog import ConfigLines, Snapshot, lookup_or_nothing

    lines = ConfigLines(config)
    alias = request.alias
    if any(option.module == alias for option in config.options) and not any(
        line.pattern == alias and line.module == request.module for line in config.aliases
    ):
        # The daemon may name any alias; without the check, that of another module with other options.
        hits = lookup_or_nothing(alias, Snapshot(Tree(root).quick_snapshot().catalog, config))
        alias = alias if any(hit.module == request.module for hit in hits) else ""
    return " ".join([line.text for line in lines.options(request.module, alias) if line.text])


def _read(path: str, trusted: Trusted) -> bytes:
    """Return the content of a configuration file. Raises OSError: also if `trusted` does not accept it."""
    with open(path, "rb", buffering=0, opener=lambda path, _: trusted.open_config(path)) as file:
        return file.read()


# -- the process ---------------------------------------------------------------------------------------------------


class _Run:
    """A command that was started, and the end of what it has written so far."""

    def __init__(self, command: str, options: str, module: str, output: bytes) -> None:
        """Start the command with standard output and error in one pipe. Raises OSError."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(_OF_THE_SOCKET)}
        self._output, theirs = os.pipe()
        self._told, self._tell = os.pipe()
        files = (
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, theirs, 1), (os.POSIX_SPAWN_DUP2, theirs, 2),
        )  # fmt: skip
        self._pid = start_command(command, options, module, env, files)
        os.close(theirs)
        os.set_blocking(self._output, False)
        self._text = output
        self._status = 0
        self._has_writer = True
        self._poll = select.poll()
        self._poll.register(self._output, select.POLLIN)
        self._poll.register(self._told, select.POLLIN)
        threading.Thread(target=self._reap, daemon=True).start()

    def _reap(self) -> None:
        """Reap the command and its orphans: one that is not reaped seems to run, and the command may wait for it."""
        while True:
            try:
                pid, status = os.waitpid(-1, 0)
            except ChildProcessError:
                break
            if pid == self._pid:
                self._status = os.waitstatus_to_exitcode(status)
                os.write(self._tell, b"ended")
        os.close(self._tell)

    def reply(self, request: CommandRequest, begin: int) -> Reply:
        """Wait for the end of the command, not of processes that it leaves behind. `begin`: CLOCK_MONOTONIC in ns."""
        self._wait()
        output, what = escaped_end(self._text, OUTPUT_LIMIT), f"{request.kind} command of {request.at}"
        if not self._status:
            return Reply(0, "command", _usec(begin), "", "0", output)
        if self._status < 0:
            name = next((each.name for each in signal.Signals if each == -self._status), f"signal {-self._status}")
            return Reply(errno.EINVAL, "signal", _usec(begin), f"{what} was killed by {name}", name, output)
        last = escaped_end(self._text.rstrip().rpartition(b"\n")[2], _MAX_SHOWN)
        detail = f"{what} exited with status {self._status}{': ' if last else ''}{last}"
        return Reply(errno.EINVAL, "command", _usec(begin), detail, str(self._status), output)

    def wait_for_rest(self) -> None:
        """Take what processes that the command has left behind write, until they have ended."""
        while self._wait():
            pass

    def _wait(self) -> bool:
        """Wait until the command has ended; False: so have all its processes. Everything written by then is read."""
        while True:
            ready = {fd for fd, _ in self._poll.poll()}
            told = os.read(self._told, 16) if self._told in ready else None
            self._take()
            if told is not None:
                return bool(told)

    def _take(self) -> None:
        """Read what is in the pipe, and keep its end."""
        try:
            data = os.read(self._output, _PIPE_SIZE) if self._has_writer else b""
        except BlockingIOError:
            return
        if data:
            self._text = (self._text + data)[-OUTPUT_LIMIT:]
        elif self._has_writer:
            self._has_writer = False
            self._poll.unregister(self._output)


def _journal() -> Journal:
    from kmodd.host.journal import JOURNAL_SOCKET, open_journal
    from kmodd.planning.record import INFO

    return open_journal(under_systemd=os.path.exists(JOURNAL_SOCKET), lowest=INFO, stream=sys.stderr)


def _late_record(request: CommandRequest, reply: Reply) -> Record:
    """Return the record of a command that ended after the daemon."""
    from kmodd.planning.record import KINDS, PREFIX, Record

    done: tuple[Result, Result] = ("loaded", "failed") if request.kind == "install" else ("removed", "not_removed")
    result = done[reply.errno != 0]
    number, priority = KINDS[result]
    what = reply.detail or f"{request.kind} command of {request.at} exited with status 0"
    fields = [
        ("KMODD_RESULT", result), ("KMODD_MODULE", request.module), ("KMODD_DURATION_USEC", str(reply.usec)),
        ("KMODD_FILE", request.at.file), ("KMODD_LINE", str(request.at.line)),
        ("KMODD_COMMAND_STATUS", reply.status), ("KMODD_COMMAND_OUTPUT", reply.output),
    ]  # fmt: skip
    message = f"After kmodd had ended: {request.module}: {what}, after {duration(reply.usec)}"
    return Record(PREFIX + number, priority, message, tuple(field for field in fields if field[1]))
