"""The lines of modprobe.d that count for a module: those of `kmodd deny` only where no rule of it decides."""

from __future__ import annotations

from kmodd.config.modprobe_d import DENY_FILE, without
from kmodd.index.catalog import ConfigLines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kmodd.index.catalog import Snapshot
    from kmodd.planning.policy import PolicyDecision


def lines_for(snapshot: Snapshot, module: str, judge: Callable[[str], PolicyDecision] | None) -> ConfigLines:
    """Return the lines of a snapshot for a module.

    DENY_FILE stands for the rules of `kmodd deny` where kmodd does not run. Where a judge asks these rules, and one
    decides about the module, its lines do not count: a rule may allow the module to one user, or for a time.

    judge: the policy; None: it is not asked.
    """
    line = snapshot.lines.blacklist(module) if judge else None
    if judge is None or line is None or line.at.file != DENY_FILE or not judge(module).is_local:
        return snapshot.lines
    return ConfigLines(without(snapshot.config, frozenset((DENY_FILE,))))
