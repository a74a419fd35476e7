"""What `kmodd deny` says of a module."""

from __future__ import annotations

import json

from kmodd.kernel.proc_modules import LoadedModule
from kmodd.names import ModuleName
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


def test_a_program_reads_what_is_not_known_and_what_loads_it_all_the_same() -> None:
    """Unknown is not none. Control: a machine whose history and images were read."""
    truth = Truth("a", overrides=("the install line at /etc/modprobe.d/00-a.conf:1",), history="it is another's")
    known = as_object(truth)
    assert known["overrides"] == ["the install line at /etc/modprobe.d/00-a.conf:1"]
    assert (known["used_by"], known["used_by_unknown"], known["initrds"]) == (None, "it is another's", None)
    known = as_object(Truth("a", initrds=()))
    assert (known["used_by"], known["used_by_unknown"]) == ([], None)
    assert (known["initrds"], known["initrds_unknown"]) == ([], None)


def test_references_are_counted() -> None:
    """Control: none, and a module that is going, have no number."""

    def said(count: int) -> str:
        return sentences(Truth("a", LoadedModule(ModuleName("a"), 1, count, (), "live")))[0]

    assert "now, with 1 reference: it stays" in said(1)
    assert "now, with 2 references: it stays" in said(2)
    assert "now: it stays" in said(0)
    assert "now: it stays" in said(-1)
