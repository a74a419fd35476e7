"""What `kmodd deny` says of a module."""

from __future__ import annotations

import json

from kmodd.planning.history import entries_of
from kmodd.planning.module_truth import askers_of


def test_only_requests_that_had_the_module_used_it() -> None:
    """A request that was denied did not."""

    def record(module: str, unit: str, uid: int) -> str:
        fields = {
            "MESSAGE_ID": "0" * 28 + "0001", "MESSAGE": "x", "PRIORITY": "6", "_UID": "0", "_COMM": "kmodd",
            "SYSLOG_IDENTIFIER": "kmodd", "KMODD_RESULT": "loaded", "KMODD_SOURCE": "request", "KMODD_MODULE": module,
            "KMODD_MODULES": module, "KMODD_REQUESTER_PID": "7", "KMODD_REQUESTER_UID": str(uid),
            "KMODD_REQUESTER_COMM": "x", "KMODD_REQUESTER_UNIT": unit, "KMODD_REQUESTER_CONTAINER": "no",
        }  # fmt: skip
        return json.dumps(fields)

    lines = [record("a", "x.service", 0), record("a", "", 1000), record("a", "x.service", 0), record("b", "y", 0)]
    denied = record("a", "z.service", 0).replace('"loaded"', '"denied"')
    assert askers_of("a", entries_of([*lines, denied])) == (("x.service", 2), ("uid 1000", 1))
