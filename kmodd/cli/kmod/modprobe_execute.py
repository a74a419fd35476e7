"""modprobe in this process: print, carry out and log each step of a plan, with the messages of kmod 34.

Plans are made by `kmodd.planning.resolve` and `kmodd.planning.removal`. Steps carried out by the daemon are reported
with the same functions (`modprobe_remote`).
"""

from __future__ import annotations

import errno
import os

from kmodd.cli.kmod.messages import CRIT, ERR, WARNING, Messages, own_reasons
from kmodd.dataclass import dataclass, replace
from kmodd.host.kmsg_reader import KernelLog
from kmodd.host.tree import Tree
from kmodd.index.catalog import Snapshot
from kmodd.kernel.proc_modules import Loaded
from kmodd.loader.in_process import InsertOptions, Machine
from kmodd.planning.job import Job
from kmodd.planning.outcome import Outcome
from kmodd.planning.plan import Goal, Insmod, Install, Plan, RemovalStep, RemoveCommand, Rmmod, Skip, Step
from kmodd.planning.removal import RemovalJob, plan_removal
from kmodd.planning.reply import Reply, outcome_of
from kmodd.planning.request import RemovalOptions, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_NO_FILE = "could not find module by name='{}'"
_COMMAND_FAILED = "Error running install command '{}' for module {}: retcode {}"


@dataclass(frozen=True, slots=True)
class How:
    """Options of modprobe that affect how steps are carried out."""

    insert_options: InsertOptions
    all: bool = False
    """Failures that would be FATAL are WARNINGs, and the next name follows (`-a`)."""
    first_time: bool = False
    shown: bool = False
    """Whether actions are printed."""
    dry: bool = False
    ignore_loaded: bool = False
    ignore_commands: bool = False
    holders: bool = False

    @property
    def level(self) -> int:
        """Level of messages that end the program without `-a`."""
        return WARNING if self.all else CRIT

    def removing(self, messages: Messages) -> RemovalOptions:
        """Return the options for a removal; a FATAL message that is not printed does not end the program."""
        return RemovalOptions(
            self.first_time, messages.verbose >= self.level == CRIT, self.ignore_commands, self.holders,
            self.insert_options.wait_msec > 0, self.ignore_loaded,
        )  # fmt: skip


@dataclass(slots=True)
class Actor:
    """One run of modprobe."""

    tree: Tree
    snapshot: Snapshot
    how: How
    messages: Messages
    machine: Machine
    _loaded: Loaded | None = None

    # ── insertion ──

    def insert(self, plan: Plan) -> int:
        """Carry out a plan that has goals; return the status of the last goal, as kmod does."""
        status = 0
        for number, goal in enumerate(plan.goals):
            for complaint in goal.complaints:
                self.messages.log(ERR, complaint)
            code = self._insert_goal(plan.request, goal, is_first=number == 0)
            status = 1 if code else 0
        return status

    def _insert_goal(self, request: Request, goal: Goal, *, is_first: bool) -> int:
        """Carry out a goal; return 0, or the errno after an error message."""
        if not is_first and self._state().state(goal.module) == "live":
            code = errno.EEXIST if self.how.first_time else 0
            log_insertion(goal.module, code, (), self.messages)
            return code
        if self.how.first_time:
            goal = first_time(goal)
        job = Job(Plan(request, (goal,)))
        with KernelLog() as kernel_log:
            log = self._carry_out(job, goal, kernel_log)
        self._report(job.pop_outcomes())
        code = failure(goal, job.outcomes, first_time=self.how.first_time)
        log_insertion(goal.module, code, log, self.messages)
        return code

    def _carry_out(self, job: Job, goal: Goal, kernel_log: KernelLog) -> list[str]:
        """Carry out all steps of a goal; return the reasons why the last failed step failed."""
        request = job.plan.request
        log: list[str] = []
        while step := job.next_step(lambda step: self._known(request, step)):
            self._report(job.pop_outcomes())
            if self.how.shown:
                self.messages.show(action(step))
            reply = self.machine.carry_out(step, self.how.insert_options, self.tree.real)
            self._loaded = None
            if reply.errno:
                log = own_reasons(reply) or [f"the kernel says: {line}" for line in kernel_log.about(step.module)]
                self._log_command_failure(step, reply)
            job.finish(outcome_of(request, step, reply))
            if self.how.first_time and step.module == goal.module and job.outcomes[-1].result == "live":
                break
        return log

    def _log_command_failure(self, step: Step, reply: Reply) -> None:
        if isinstance(step, Install):
            command = step.command.replace("$CMDLINE_OPTS", step.options)
            self.messages.log(ERR, _COMMAND_FAILED.format(command, step.module, reply.detail))

    def _state(self) -> Loaded:
        self._loaded = self._loaded or self.tree.loaded()
        return self._loaded

    def _known(self, request: Request, step: Step) -> Outcome | None:
        """Return the outcome of a step whose module an earlier step has loaded, else None."""
        is_live = self._state().state(step.module) == "live"
        return Outcome(request, step.module, "live", step.because) if is_live else None

    def _report(self, outcomes: Iterable[Outcome]) -> None:
        """Record outcomes in the journal, except of modules that were loaded; print an error for missing modules."""
        for outcome in outcomes:
            if outcome.result == "missing" and not outcome.path:
                log_missing(outcome.module, self.messages)
            if outcome.result not in ("live", "builtin"):
                self.machine.tell(outcome)

    # ── removal ──

    def remove(self, text: str) -> int:
        """Remove the modules that match a name; return 0, or 1 after error messages."""
        request = Request(text, "operator", removing=self.how.removing(self.messages))
        plan = plan_removal(request, self.snapshot, self.tree.loaded(), self.tree.present)
        for complaint in plan.complaints:
            self.messages.log(ERR, complaint)
        job = RemovalJob(plan, self.tree.loaded)
        while step := job.next_step():
            self._report_removal(job.pop_outcomes())
            if self.how.shown:
                self.messages.show(action(step))
            if self.how.dry:
                job.finish(Outcome(request, step.module, "removed", step.because))
                job.pop_outcomes()
                continue
            if isinstance(step, RemoveCommand):
                self.messages.flush()
            reply = self.machine.carry_out(step, self.how.insert_options, self.tree.real)
            job.finish(outcome_of(request, step, reply))
        self._report_removal(job.pop_outcomes())
        return 1 if job.failed else 0

    def _report_removal(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            if not self.how.dry:
                self.machine.tell(outcome)
            is_command = outcome.result == "not_removed" and outcome.at is not None
            log_removal(outcome.module, outcome.result, outcome.errno, is_command, self.how, self.messages)


# ── messages, also of the daemon's steps ─────────────────────────────────────────────────────────────────────────────


def action(step: Step | RemovalStep) -> str:
    """Return a step as kmod prints it; a blank precedes the options even if there are none."""
    match step:
        case Insmod():
            return f"insmod {step.path} {step.options}"
        case Install():
            return f"install {step.command} {step.options}"
        case Rmmod():
            return f"rmmod {step.module}"
        case RemoveCommand():
            return f"remove {step.command.replace('$CMDLINE_OPTS', '')}"


def first_time(goal: Goal) -> Goal:
    """Return a goal as `--first-time` carries it out: it ends at the second entry of the goal's module.

    A softdep may need the module, which is loaded then (kmod_module_probe_insert_module, KMOD_PROBE_FAIL_ON_LOADED).
    """
    own = [number for number, entry in enumerate(goal.entries) if entry.module == goal.module]
    return replace(goal, entries=goal.entries[: own[1] + 1]) if len(own) > 1 else goal


def failure(goal: Goal, outcomes: Sequence[Outcome], *, first_time: bool) -> int:
    """Return the errno of a goal, that of the first required entry that failed, or 0."""
    for entry, outcome in zip(goal.entries, outcomes, strict=False):
        if outcome.result in ("live", "builtin") and first_time and outcome.module == goal.module:
            return errno.EEXIST
        if not entry.required and not (isinstance(entry, Skip) and entry.module == goal.module):
            continue
        if outcome.result in ("failed", "missing", "crashed", "not_attempted"):
            return outcome.errno or (errno.ENOENT if outcome.result == "missing" else errno.EIO)
    return 0


def log_missing(module: str, messages: Messages) -> None:
    """Print the error for a module without a file."""
    messages.log(ERR, _NO_FILE.format(module))


def log_insertion(module: str, code: int, reasons: Iterable[str], messages: Messages) -> None:
    """Print the error for a goal that failed with errno `code`, then its reasons; nothing if `code` is 0."""
    if not code:
        return
    match code:
        case errno.EEXIST:
            text = "Module already in kernel"
        case errno.ENOENT:
            text = "Unknown symbol in module, or unknown parameter (see dmesg)"
        case _:
            text = os.strerror(code)
    messages.log(ERR, f"could not insert '{module}': {text}")
    for line in reasons:
        messages.log(ERR, line)


def log_removal(module: str, result: str, code: int, is_command: bool, how: How, messages: Messages) -> None:
    """Print the error for a module that was not removed. Raises Stop if a printed message is FATAL."""
    match result:
        case "nomatch":
            messages.log(how.level, f"Module {module} not found.")
        case "absent":
            messages.log(how.level, f"Module {module} is not in kernel.")
        case "builtin":
            messages.log(how.level, f"Module {module} is builtin.")
        case "in_use":
            messages.log(how.level, f"Module {module} is in use.")
        case "stuck":
            messages.log(ERR, f"could not remove '{module}': The kernel has not finished the removal")
        case "not_removed" if is_command:
            messages.log(how.level, f"Error running remove command for {module}")
        case "not_removed":
            messages.log(ERR, f"could not remove '{module}': {os.strerror(code)}")
