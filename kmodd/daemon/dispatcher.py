"""Carries the engine's batches to loaders and command runners, and their answers back as events: a `Dispatcher`."""

from __future__ import annotations

import contextlib
import errno
import time

from kmodd.engine.events import (
    AskStack,
    DropStack,
    Event,
    LoaderDied,
    LoaderLook,
    LoaderNamed,
    LoaderReplied,
    LoadersSeen,
    LookAtLoaders,
    NotStarted,
    StackRead,
    StartBatch,
    StartProbe,
    StopBatch,
)
from kmodd.errors import assert_never
from kmodd.host.task_state import task_state
from kmodd.kernel.kmsg import KernelLine
from kmodd.loader.kernel_stack import StackQuestion
from kmodd.loader.pool import Died, Loader, LoaderPool
from kmodd.loader.protocol import CommandRequest, LoaderRequest, ProbeRequest
from kmodd.loader.step_requests import request_for
from kmodd.planning.reply import Reply

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    LoaderCommand = StartBatch | StartProbe | StopBatch | AskStack | DropStack | LookAtLoaders
    """The commands that are for a loader."""

TRIES = 3
"""Loaders in a row that may be gone at once: those in reserve may all be old."""


class Dispatcher:
    """Knows which loader has which batch."""

    def __init__(
        self, pool: LoaderPool, real: Callable[[str], str], kernel_log: Callable[[], tuple[KernelLine, ...]] = tuple
    ) -> None:
        """`real` maps a printed path to the one to open; `kernel_log` gives the latest lines of the kernel log."""
        self._pool = pool
        self._real = real
        self._kernel_log = kernel_log
        self._loaders: dict[int, Loader] = {}
        self._left: dict[int, int] = {}
        """Number of answers that the loader of a batch owes."""
        self._commands: dict[int, float] = {}
        """When the command of a batch was started (monotonic, seconds); its process serves no other batch."""
        self._questions: dict[int, StackQuestion] = {}
        self._stillborn = 0
        """Loaders that have ended without a word since one last answered."""

    @property
    def sources(self) -> tuple[Loader | StackQuestion, ...]:
        """Everything to be polled."""
        return (*self._loaders.values(), *self._pool.idle, *self._questions.values())

    @property
    def loaders(self) -> tuple[tuple[int | None, Loader], ...]:
        """All loaders, each with the number of its batch; None: it is in reserve."""
        return (*self._loaders.items(), *((None, loader) for loader in self._pool.idle))

    def execute(self, command: LoaderCommand) -> list[Event]:
        """Carry out a command. Returns what there is to tell the engine at once."""
        match command:
            case StartBatch():
                return self.start(command)
            case StartProbe():
                return self.start_probe(command)
            case StopBatch(batch):
                self.stop(batch)
            case AskStack():
                return self.ask_stack(command)
            case DropStack(batch):
                self.drop_question(batch)
            case LookAtLoaders(loaders):
                seen = ((batch, task_state(pid)) for batch, pid in loaders)
                looks = (LoaderLook(batch, task.is_asleep, task.ticks) for batch, task in seen if task)
                return [LoadersSeen(tuple(looks))]
            case _:
                assert_never(command)
        return []

    def start(self, command: StartBatch) -> list[Event]:
        """Give a batch to a loader. Returns what there is to tell the engine at once."""
        request = request_for(command.steps, self._real)
        if isinstance(request, CommandRequest):
            return self._start_command(command.batch, request)
        return self._start(command.batch, request, len(command.steps))

    def start_probe(self, command: StartProbe) -> list[Event]:
        """Give a probe to a loader."""
        return self._start(command.batch, ProbeRequest(command.bus, command.device), 1)

    def _start(self, batch: int, request: LoaderRequest, answers: int) -> list[Event]:
        why = "no loader: each one is gone at once"
        for _ in range(TRIES if self._stillborn < TRIES else 0):
            try:
                loader = self._pool.get()
            except OSError as error:
                why = f"no loader: {error}"
                break
            try:
                if loader.start(request):
                    self._loaders[batch], self._left[batch] = loader, answers
                    return [LoaderNamed(batch, loader.pid)] if loader.pid else []
            except OSError as error:
                why = f"no loader: {error}"
            except ValueError as error:  # longer than a loader takes
                self._pool.give_back(loader)
                return [NotStarted(batch, str(error), too_long=True)]
            self._pool.lost(loader)
        self._stillborn = 0
        return [NotStarted(batch, why)]

    def _start_command(self, batch: int, request: CommandRequest) -> list[Event]:
        """Have the command of a batch run. One that cannot be started has failed: no loader would help."""
        runner = None
        try:
            runner = self._pool.open_runner()
            if not runner.start(request):
                raise OSError(errno.EPIPE, "the process that runs commands has ended at once")
        except (OSError, ValueError) as error:
            if runner:
                runner.close()
            code = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
            return [LoaderReplied(batch, Reply(code, "command", 0, _not_run(request.kind, error)))]
        self._loaders[batch], self._left[batch], self._commands[batch] = runner, 1, time.monotonic()
        return []

    def stop(self, batch: int) -> None:
        """Have the loader of a batch end after the current step."""
        if batch in self._loaders:
            self._loaders[batch].stop()

    def ask_stack(self, command: AskStack) -> list[Event]:
        """Ask for the kernel stack of a loader."""
        question = self._pool.ask_stack(command.pid)
        if question is None:
            return [StackRead(command.batch, ())]
        self.drop_question(command.batch)
        self._questions[command.batch] = question
        return []

    def drop_question(self, batch: int) -> None:
        """Wait for the stack of the loader of a batch no longer."""
        if question := self._questions.pop(batch, None):
            with contextlib.suppress(OSError):
                question.close()

    def on_stack(self, question: StackQuestion) -> list[Event]:
        """A stack can be read, in part or whole."""
        batch = next((number for number, each in self._questions.items() if each is question), None)
        if batch is None or (frames := question.answer()) is None:
            return []
        self.drop_question(batch)
        return [StackRead(batch, frames)]

    def on_loader(self, loader: Loader) -> list[Event]:
        """A loader has answered, told its process number, or ended."""
        if not any(loader is each for _, each in self.loaders):
            return []  # dropped earlier in this round
        batch = next((number for number, each in self._loaders.items() if each is loader), None)
        had_pid = loader.pid
        heard = loader.receive()
        if batch in self._commands and heard is not None:
            return self._command_ended(batch, loader, heard)
        if isinstance(heard, Died):
            self._pool.lost(loader)
            if batch is None:
                return []
            self.drop_question(batch)
            del self._loaders[batch], self._left[batch]
            self._stillborn += not loader.pid
            return [LoaderDied(batch, heard.begun, self._kernel_log())]
        if batch is None:
            return []
        if heard is None:
            return [LoaderNamed(batch, loader.pid)] if loader.pid != had_pid else []
        self.drop_question(batch)
        self._left[batch] -= 1
        if heard.errno or not self._left[batch]:
            del self._loaders[batch], self._left[batch]
            self._pool.give_back(loader)
        self._stillborn = 0
        return [LoaderReplied(batch, heard)]

    def _command_ended(self, batch: int, runner: Loader, heard: Reply | Died) -> list[Event]:
        """A command runner has replied or ended."""
        self.drop_question(batch)
        del self._loaders[batch], self._left[batch]
        usec = int((time.monotonic() - self._commands.pop(batch)) * 1e6)
        runner.close()
        if isinstance(heard, Died):
            why = "the process that ran it ended without an answer" if runner.pid else "the process did not start"
            heard = Reply(errno.EIO, "command", usec, why)
        return [LoaderReplied(batch, heard)]

    def close(self) -> None:
        """Let the loaders go: a module's init and a command go on, and their processes end after them."""
        for batch in list(self._questions):
            self.drop_question(batch)
        for loader in self._loaders.values():
            loader.close()
        self._pool.close()


def _not_run(kind: str, error: Exception) -> str:
    return f"Failed to start the {kind} command: {error}"
