"""What `kmodd deny` says of a module."""

from __future__ import annotations

import json

from kmodd.planning.history import entries_of
from kmodd.planning.module_truth import Truth, as_object, askers_of, sentences


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


def test_an_image_that_is_not_read_is_named() -> None:
    """The control is a machine without one."""
    truth = Truth("a", initrds=(), unread=(("/efi/EFI/Linux/x.efi", "offset 0: expected a DOS header"),))
    said = "Whether /efi/EFI/Linux/x.efi carries it is not known: offset 0: expected a DOS header"
    assert said in sentences(truth)
    assert as_object(truth)["images_not_read"] == ["/efi/EFI/Linux/x.efi"]
    assert not any("efi" in line for line in sentences(Truth("a", initrds=())))
