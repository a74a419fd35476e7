"""`kmodd why` and `history` on a real kernel: the answers are held against its own record of who loaded what."""

from __future__ import annotations

import base64
import errno
import gzip
import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from kmodd import __version__
from tests import program
from tests.journal_files import record, write_journal
from tests.vm.conftest import LOG_LEVEL
from tests.vm.devices import DEVICES
from tests.vm.image import Image
from tests.vm.machine import Machine
from tests.vm.payload import Payload
from tests.vm.scenario import plug, settle
from tests.vm.using import NOBODY, PRESETS, asked, prepare_using, use

pytestmark = [pytest.mark.vm, pytest.mark.long, pytest.mark.timeout(1800)]

PRESET = "50-no-unprivileged-autoload.conf"
CONF = "/etc/modprobe.d/vm-test.conf"
ALG, LLC = "socket 38 5 0", "socket 26 2 0"
_USER = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups"


@pytest.fixture(scope="module")
def guest(image: Image, boot: Callable[..., AbstractContextManager[Machine]]) -> Iterator[Machine]:
    """With records as of the default level, a policy that lets a user load llc2, and i6300esb on the blacklist."""

    def prepare(payload: Payload) -> None:
        prepare_using(payload, image, conf="Policy=enforce\n")
        payload.write(LOG_LEVEL, "")
        payload.write(CONF, "# a comment\nblacklist i6300esb\n")
        payload.link(f"/etc/kmodd/policy.d/{PRESET}", f"{PRESETS}/{PRESET}")
        payload.write("/etc/kmodd/policy.d/20-llc.conf", f"allow request=net-pf-26 uid={NOBODY}\n")

    with boot("the guest that asks why", prepare=prepare) as machine:
        yield machine


def _why(machine: Machine, *words: str, user: str = "", status: int = 0) -> list[dict[str, Any]]:
    """What `kmodd why --json` answers, once journald has written all records."""
    ran = machine.run(f"journalctl --sync; {user} kmodd why --json {' '.join(words)} 2>/run/why.err", 120)
    assert ran.status == status, ran.output + machine.check("cat /run/why.err")
    return [json.loads(line) for line in ran.output.splitlines()]


def _dependencies(machine: Machine) -> dict[str, set[str]]:
    """Module → modules that it needs, directly or not, by the guest's modules.dep."""
    found = {}
    for line in machine.check("cat /usr/lib/modules/*/modules.dep").splitlines():
        names = [re.sub(r"\.ko.*", "", path.rpartition("/")[2]).replace("-", "_") for path in re.split(":? ", line)]
        found[names[0].rstrip(":")] = set(names[1:])
    return found


def test_every_module_is_explained_as_the_kernel_saw_it(guest: Machine) -> None:
    """Loaded by kmodd's loader, or from before by the initrd or PID 1; a dependency is one of modules.dep."""
    for name in ("e1000e", "qemu-xhci", "usb-storage", "virtio-scsi-pci"):
        assert plug(guest, DEVICES[name]).faults() == []
    loads = {load.module: load for load in guest.module_loads()}
    live = sorted(guest.modules())
    answers = {each["subject"]: each for each in _why(guest, *live)}
    assert set(answers) == set(live)
    for name in live:
        by_kmodd = name in loads and loads[name].comm == "kmodd-loader"
        assert answers[name]["answer"] == ("loaded" if by_kmodd else "before"), (answers[name], loads.get(name))
        assert bool(answers[name]["suspects"]) != by_kmodd
    needs = _dependencies(guest)
    came = [(name, each["needed_by"]) for name, each in answers.items() if each["needed_by"]]
    assert came, "the control: some modules were dependencies"
    for name, way in came:
        assert way[0]["module"] == name
        for step in way:
            goal = step["reason"].removeprefix("dependency of ")
            if goal != step["reason"]:
                assert step["module"] in needs[goal], (name, way)
    assert {"scsi_mod", "usb_storage"} & {name for name, _ in came} or "usbcore" in dict(came)


def test_a_network_card_by_its_interface_and_its_address(guest: Machine) -> None:
    """Alias, pattern and the line of modules.alias that has it are the machine's own."""
    (path,) = guest.check("readlink -f /sys/bus/pci/drivers/e1000e/0000:*").split()
    (interface,) = guest.check(f"ls {path}/net").split()
    for subject in (path, path.rpartition("/")[2], f"/sys/class/net/{interface}"):
        (found,) = _why(guest, subject)
        assert (found["answer"], found["module"], found["kind"]) == ("bound", "e1000e", "device"), found
        what = found["record"]
        assert what["devices"] == [path.removeprefix("/sys")]
        assert what["alias"] == guest.check(f"cat {path}/modalias").strip()
        place = re.fullmatch(r"alias matched (\S+) of (?:.*/)?modules\.alias:(\d+)", what["because"])
        assert place, what["because"]
        line = guest.check(f"busybox sed -n {place[2]}p /usr/lib/modules/*/modules.alias").split()
        assert line == ["alias", place[1], "e1000e"]
        assert place[1] == what["pattern"]
        assert found["kmodd"]["version"] == __version__
        assert found["record"]["program"] == "kmodd"
        assert found["kmodd"]["pid"] == int(guest.check("systemctl show -P MainPID kmodd"))
        assert 0 < what["duration_usec"] < 60_000_000
    shown = guest.check("kmodd why e1000e")
    assert shown.startswith("e1000e is loaded for 0000:")
    assert "   Matched: pci:v00008086d000010D3sv" in shown


def test_a_process_that_has_ended_and_what_it_was_denied(guest: Machine) -> None:
    """Process, rule with file and line; the command that is printed changes it."""
    mark = guest.journal.mark()
    used = use(guest, "user", ALG)
    assert used.only == errno.EAFNOSUPPORT
    asked(guest, "af_alg", "denied", mark)
    assert guest.run(f"test -d /proc/{used.pid}").status == 1
    (by_pid,) = _why(guest, str(used.pid))
    (by_name,) = _why(guest, "af_alg")
    rule = guest.check(f"grep -nE '^deny +origin=request +uid=!0' {PRESETS}/{PRESET}").partition(":")[0]
    for found in (by_pid, by_name):
        lines = [(each["file"], each["line"]) for each in found["lines"]]
        assert (found["answer"], lines) == ("denied", [(f"/etc/kmodd/policy.d/{PRESET}", int(rule))]), found
        assert (found["record"]["requester"]["pid"], found["record"]["requester"]["uid"]) == (used.pid, NOBODY)
    guest.check(by_pid["remedies"][0]["command"])
    assert use(guest, "user", ALG).only == 0


def test_a_users_process_has_a_module_loaded(guest: Machine) -> None:
    used = use(guest, "user", LLC)
    assert used.only == errno.EPERM, "the module's own check, once it is there"
    answers = _why(guest, str(used.pid))
    loaded = [each["module"] for each in answers if each["answer"] == "loaded"]
    assert "llc2" in loaded, answers
    assert {each["record"]["requester"]["uid"] for each in answers} == {NOBODY}
    (of_module,) = _why(guest, "llc2")
    assert of_module["record"]["requester"]["pid"] == used.pid
    assert of_module["sentence"] == f"llc2 is loaded for python3[{used.pid}] uid {NOBODY}"
    history = guest.check(f"kmodd history -b --user {NOBODY} --result loaded --json --module llc2")
    assert json.loads(history)["request_id"] == of_module["record"]["request_id"]


def test_a_blacklisted_driver_and_the_command_that_changes_it(guest: Machine) -> None:
    guest.plug(DEVICES["i6300esb"])
    settle(guest)
    (path,) = guest.check("grep -l v00008086d000025AB /sys/bus/pci/devices/*/modalias").split()
    answers = [_why(guest, subject)[0] for subject in ("i6300esb", path.removesuffix("/modalias"))]
    for found in answers:
        assert found["answer"] == "blacklisted", found
        assert found["lines"] == [{"file": CONF, "line": 2, "rule": None}]
    (command,) = [each["command"] for each in answers[0]["remedies"] if each["text"].startswith("without ")]
    guest.check(command)
    guest.check("kmodd reload && kmodd settle", 120)
    (found,) = _why(guest, "i6300esb")
    assert (found["answer"], found["record"]["source"]) == ("loaded", "reconcile"), found


def test_what_has_no_module_says_so(guest: Machine) -> None:
    (found,) = _why(guest, "e1000x", status=1)
    assert found["sentence"] == "no module, alias or device 'e1000x' is known; did you mean 'e1000'?"
    (found,) = _why(guest, "dummy")
    assert found["answer"] == "not_asked"
    (found,) = _why(guest, "net-pf-38")
    assert found["kind"] == "alias"


def test_a_user_learns_nothing_of_others(guest: Machine) -> None:
    """The journal's own rights hold, and the answer does not pretend to know. Control: the group systemd-journal."""
    (found,) = _why(guest, "llc2", user=_USER, status=1)
    assert (found["answer"], found["record"]) == ("unknown", None)
    assert "which cannot be read" in found["sentence"]
    assert "root and the groups systemd-journal and adm may read" in guest.check("cat /run/why.err")
    assert guest.run(f"{_USER} kmodd history").status == 1
    group = f"setpriv --reuid={NOBODY} --regid={NOBODY} --groups=systemd-journal"
    (found,) = _why(guest, "llc2", user=group)
    assert found["answer"] == "loaded"


def test_a_forged_record_is_not_believed(guest: Machine) -> None:
    forged = "MESSAGE=x\\nSYSLOG_IDENTIFIER=kmodd\\nKMODD_RESULT=loaded\\nKMODD_MODULE=dummy\\nKMODD_MODULES=dummy\\n"
    for user, count in ((_USER, 0), ("", 1)):
        guest.check(f"printf '{forged}' | {user} logger --journald")
        guest.check("journalctl --sync")
        ran = guest.run("kmodd history --module dummy --json")
        assert len([line for line in ran.output.splitlines() if line.startswith("{")]) == count


def test_the_boot_before(guest: Machine, tmp_path: Path) -> None:
    """The guest's journal is volatile, which `-b -1` says; its file answers for that boot on another machine."""
    for verb in ("history -b -1", "why -b -1 e1000e"):
        ran = guest.run(f"kmodd {verb}")
        assert ran.status == 1
        assert "the journal is kept in memory only, so earlier boots are gone" in ran.output
    exported = guest.check("journalctl -t kmodd -o export | gzip -c | base64 -w 0", 120)
    later = record("f122", __REALTIME_TIMESTAMP="4000000000000000", _BOOT_ID="3" * 32)
    folder = write_journal(tmp_path / "journal", [later], gzip.decompress(base64.b64decode(exported)))
    for boot, status in (("-1", 0), ("0", 1)):
        said = program.run(["why", "--json", "--root", str(tmp_path), "-D", folder, "-b", boot, "e1000e"])
        assert said.status == status, said
        found = json.loads(said.out)
        assert (found["answer"], bool(found["record"])) == (("loaded", True) if boot == "-1" else ("unknown", False))
