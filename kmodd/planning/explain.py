"""Format a plan as text and as JSON, for explain, the daemon and the tools."""

from __future__ import annotations

from kmodd.errors import Where
from kmodd.planning.plan import Insmod, Install, Plan, Reason, Skip, Step
from kmodd.planning.refusals import refusal_of
from kmodd.text import count_of, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kmodd.planning.denials import Denial


def text_of(plan: Plan, name: str = "", why: str = "", denied: Sequence[Denial] = ()) -> str:
    """Return the plan as text, one line per entry, without the final LF, characters that are not printable escaped.

    name: the device's name, if known. why: why the request names nothing, as a predicate; empty: it does. denied: what
    policy denies to processes that make the kernel request it.
    """
    steps = plan.steps
    skipped = [f"skip {plan.request.text}   because it {why}"] if why else list(map(_skip_line, plan.skips))
    quoted = f'  "{name}"' if name else ""
    verdict = _verdict(plan)
    lines = [f"{plan.request.text} → {count_of(len(steps), 'step')}, {count_of(len(skipped), 'skip')}{verdict}{quoted}"]
    lines += [_step_line(step) for step in steps]
    return "\n".join(map(printable, [*lines, *skipped, *map(str, denied)]))


def json_line(kind: str, plan: Plan, denied: Sequence[Denial] = ()) -> str:
    """Return the plan as one line of JSON (docs/explain.schema.json). kind: kind of the request. denied: as above."""
    import json  # imported late: it takes longer than the rest of the program

    found = as_object(kind, plan)
    if denied:
        found["denied_to"] = [
            {
                "module": each.module, "whom": list(each.whom), **_json_where(each.decision.at),
                "rule": each.decision.text, "mode": each.mode,
            }
            for each in denied
        ]  # fmt: skip
    return json.dumps(found, ensure_ascii=True)


def as_object(kind: str, plan: Plan) -> dict[str, object]:
    """Return the plan as JSON values. kind: kind of the request."""
    return {
        "request": plan.request.text,
        "kind": kind,
        "steps": [_json_step(step) for step in plan.steps],
        "skips": [
            {
                "module": skip.module,
                "reason": skip.reason,
                **_json_where(skip.at),
                "rule": skip.rule or None,
                "of": skip.of or None,
            }
            for skip in plan.skips
        ],
    }


def _verdict(plan: Plan) -> str:
    """Return `; blocked at FILE:LINE` or `; would fail because of MODULE` for a request that brings no module."""
    skips = plan.skips
    if any(goal.comes for goal in plan.goals):
        return ""
    if blocked := next((skip for skip in skips if skip.reason == "blocked" and not skip.of), None):
        users = [skip.module for skip in skips if skip.reason == "depends"]
        place = f"blocked at {blocked.at}"
        return f"; would fail because of {blocked.module}, {place}" if users else f"; {place}"
    if needed := next((skip for skip in skips if skip.reason == "depends"), None):
        return f"; would fail because of {needed.of}"
    return "; probably blocked" if any(isinstance(step, Install) for step in plan.steps) else ""


def _step_line(step: Step) -> str:
    """Return `load NAME PATH [options]   because …`, or `run COMMAND for NAME   because …` for an install command."""
    if isinstance(step, Insmod):
        what = f"{step.path} {step.options.strip()}".rstrip()
        whose = f"; its file {step.foreign}" if step.foreign else ""
        return f"load {step.module} {what}   because {step.because}{whose}"
    command = step.command.replace("$CMDLINE_OPTS", step.options.strip()).strip()
    return f"run {command} for {step.module}   because of install at {step.at}, {effect_of(step)}; {step.because}"


def effect_of(step: Install) -> str:
    """Return what an install command does as far as its text says: `its effect is not known`."""
    refusal = refusal_of(step.command)
    says = f"probably blocked, as its {'last command' if refusal.is_last else 'name'} says" if refusal else ""
    return says or "its effect is not known"


def _skip_line(skip: Skip) -> str:
    """Return why a module is skipped, and why it is in the plan."""
    if skip.reason == "blocked":
        return f"blocked {skip.module}   {skip.at} {skip.rule}   because {skip.because}"
    why = skip.why() if skip.reason == "no_match" else f"{skip.why()}; {skip.because}"
    return f"skip {skip.module}   because {why}"


def _json_step(step: Step) -> dict[str, object]:
    effect = None
    if isinstance(step, Install):
        effect = "probably_blocked" if refusal_of(step.command) else "unknown"
    return {
        "action": "install" if effect else "insmod",
        "module": step.module,
        "path": step.path if isinstance(step, Insmod) else step.command,
        "options": step.options.strip(),
        "effect": effect,
        "because": _json_because(step.because),
    }


def _json_because(because: Reason) -> dict[str, object]:
    return {"kind": because.kind, "of": because.of, "pattern": because.pattern or None, **_json_where(because.at)}


def _json_where(at: Where | None) -> dict[str, object]:
    return {"file": at.file if at else None, "line": at.line if at else None}
