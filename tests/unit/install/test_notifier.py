"""The example of a desktop notifier: what it shows, what its button runs, and that nothing starts it."""

from __future__ import annotations

import json
import os
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from kmodd.planning.history import as_object, entry_of

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "data" / "examples" / "notifier"
ME = os.getuid()

NOTIFY = """\
#!/usr/bin/python3 -I
import json, sys
with open("{folder}/shown", "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
if "--action=allow=Allow once…" in sys.argv:
    print("{answer}")
"""
PKEXEC = """\
#!/usr/bin/python3 -I
import json, sys
with open("{folder}/run", "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
print("{says}")
sys.exit({status})
"""


def record(module: str = "af_alg", **changed: str) -> str:
    """Return a line of `kmodd monitor --json`: a request of this user that a rule denied."""
    fields = {
        "_UID": "0", "MESSAGE": "Denied", "PRIORITY": "5", "KMODD_RESULT": "denied", "KMODD_SOURCE": "request",
        "KMODD_ALIAS": "net-pf-38", "KMODD_MODULE": module, "KMODD_REQUESTER_UID": str(ME),
        "KMODD_REQUESTER_CONTAINER": "no", "KMODD_REQUESTER_EXE": "/usr/bin/x",
    }  # fmt: skip
    entry = entry_of(fields | changed)
    assert entry
    return f"\x1e{json.dumps({**as_object(entry), 'missed': 0})}\n"


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def lines(path: Path) -> list[list[str]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def notified(
    folder: Path, *records: str, answer: str = "", status: int = 0, says: str = ""
) -> tuple[list[list[str]], list[list[str]]]:
    """Let the notifier see these records; return the words that notify-send got, and those that pkexec got.

    answer: the button that the user presses. status, says: of pkexec.
    """
    (folder / "stream").write_text("".join(records))
    program(folder, "kmodd", f'#!/bin/sh\n[ "$*" = "monitor --json" ] && cat {folder}/stream && exit 7\n')
    program(folder, "notify-send", NOTIFY.format(folder=folder, answer=answer))
    program(folder, "pkexec", PKEXEC.format(folder=folder, says=says, status=status))
    done = subprocess.run(
        [FOLDER / "kmodd-notifier"], env={"PATH": f"{folder}:/usr/bin:/bin", "LANG": "C.UTF-8"}, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (7, "")
    return lines(folder / "shown"), lines(folder / "run")


def test_the_button_has_polkit_ask_and_the_module_allowed_once_for_this_user(tmp_path: Path) -> None:
    shown, run = notified(tmp_path, record(), answer="allow")
    titles = [words[-2].removeprefix("Kernel module af_alg ") for words in shown]
    assert titles == ["was refused", "is allowed once"]
    assert run == [["/usr/bin/kmodd", "allow", "--once", "--for", str(ME), "af_alg"]]


def test_nothing_runs_without_the_button(tmp_path: Path) -> None:
    shown, run = notified(tmp_path, record())
    assert (len(shown), run) == (1, [])
    assert shown[0][-3:-1] == ["--", "Kernel module af_alg was refused"]


def test_a_refusal_by_polkit_or_another_rule_is_shown(tmp_path: Path) -> None:
    shown, _ = notified(tmp_path, record(), answer="allow", status=1, says="still kept out by <b> deny *")
    assert shown[-1][-2:] == ["Kernel module af_alg is still refused", "still kept out by &lt;b&gt; deny *\n"]


OTHERS = {
    "another user's": {"KMODD_REQUESTER_UID": str(ME + 1)},
    "an unknown process's": {"KMODD_REQUESTER_UID": ""},
    "a container's": {"KMODD_REQUESTER_CONTAINER": "yes"},
    "loaded": {"KMODD_RESULT": "loaded"},
    "not by policy": {"KMODD_RESULT": "blocked"},
    "a device's": {"KMODD_SOURCE": "uevent"},
}


@pytest.mark.parametrize("changed", OTHERS.values(), ids=OTHERS)
def test_other_records_are_not_shown(tmp_path: Path, changed: dict[str, str]) -> None:
    assert notified(tmp_path, record(**changed), answer="allow") == ([], [])


@pytest.mark.parametrize("module", ["", "--for", "a b", "../x", "é", "a" * 65])
def test_what_is_no_name_of_a_module_is_not_shown(tmp_path: Path, module: str) -> None:
    assert notified(tmp_path, record(module), answer="allow") == ([], [])


def test_a_request_is_text_not_markup(tmp_path: Path) -> None:
    shown, _ = notified(tmp_path, record(KMODD_ALIAS='<a href="x">fs-&'))
    assert "&lt;a href=&quot;x&quot;&gt;fs-&amp;" in shown[0][-1]


def test_a_program_that_asks_again_and_again_is_shown_once(tmp_path: Path) -> None:
    shown, _ = notified(tmp_path, *[record()] * 50, record("dccp"))
    assert len(shown) == 2


def test_polkit_asks_whoever_sits_at_the_machine_for_an_administrators_password_each_time(image: Path) -> None:
    """Not `auth_self`, which is the user's own password, nor `auth_admin_keep`, which holds for five minutes."""
    policy = ET.parse(FOLDER / "org.kmodd.allow.policy").getroot()
    (action,) = policy.findall("action")
    defaults = {each.tag: each.text for each in action.findall("defaults/*")}
    assert defaults == {"allow_any": "no", "allow_inactive": "no", "allow_active": "auth_admin"}
    keys = {each.get("key"): each.text for each in action.findall("annotate")}
    prefix = "org.freedesktop.policykit.exec"
    assert keys == {f"{prefix}.path": "/usr/bin/kmodd", f"{prefix}.argv1": "allow"}
    assert (image / "usr/bin/kmodd").exists()


def test_nothing_starts_it(image: Path) -> None:
    """All of it lies with the documentation."""
    placed = {str(path.relative_to(image)) for path in image.rglob("*notifier*") if path.is_file()}
    placed |= {str(path.relative_to(image)) for path in image.rglob("*.policy")}
    there = "usr/share/doc/kmodd/examples/notifier"
    assert placed == {f"{there}/{path.name}" for path in FOLDER.iterdir()}
    assert len(placed) == 3
