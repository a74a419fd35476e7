"""What a seal would have refused: a record of a load in, who asked for what module out."""

from __future__ import annotations

from kmodd.kernel.requester import Requester
from kmodd.planning.policy import PolicyQuery
from kmodd.planning.policy_history import text_of
from kmodd.planning.request import ORIGINS, Origin

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_ORIGINS: dict[str, Origin] = {origin: origin for origin in ORIGINS}


def sealed_asking(record: Mapping[str, object], flags: frozenset[str]) -> tuple[PolicyQuery, str] | None:
    """(who asked, as if all had been sealed, and the module) of a record of the journal; None: nothing was loaded.

    Records that root did not write do not count: anybody can write to the journal in kmodd's name.
    """
    origin = _ORIGINS.get(text_of(record, "KMODD_SOURCE"))
    if text_of(record, "_UID") != "0" or text_of(record, "KMODD_RESULT") != "loaded" or origin is None:
        return None
    device = text_of(record, "KMODD_DEVPATH")
    asking = PolicyQuery(
        origin, text_of(record, "KMODD_ALIAS"), "sealed", text_of(record, "KMODD_SUBSYSTEM"),
        (device,) if device else (), _requester(record), flags,
    )  # fmt: skip
    return asking, text_of(record, "KMODD_MODULE")


def _requester(record: Mapping[str, object]) -> Requester | None:
    uid, pid = text_of(record, "KMODD_REQUESTER_UID"), text_of(record, "KMODD_REQUESTER_PID")
    if not (uid.isdecimal() and pid.isdecimal()):
        return None
    exe, unit = text_of(record, "KMODD_REQUESTER_EXE"), text_of(record, "KMODD_REQUESTER_UNIT")
    container = text_of(record, "KMODD_REQUESTER_CONTAINER") == "yes"
    return Requester(int(pid), "", exe, int(uid), None, "", unit, container)
