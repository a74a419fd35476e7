"""modprobe, insmod, rmmod, lsmod on a real kernel, beside Debian's kmod in one guest: by the daemon and without it.

The modules are those of a module course (fixtures/modules): mod2 and mod3 need mod1. Witnesses: /proc/modules, dmesg,
the kernel's own trace of loads and the journal.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.differential.kmod_peer import without_places
from tests.vm.faults import record_of
from tests.vm.fixture_modules import course_tree
from tests.vm.image import Image
from tests.vm.journal import text
from tests.vm.machine import Machine
from tests.vm.payload import Payload

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

OURS = "/usr/lib/kmodd/bin"
KMODS = "/usr/sbin:/usr/bin"
FILES = "/root/modules"
"""In the guest: the same modules outside of the tree, one of them damaged, one compressed."""

SESSION = (
    "lsmod",
    "modprobe -v mod2",
    "lsmod",
    "modprobe mod3",
    "modprobe -v mod3",
    "modprobe --first-time mod3",
    "modprobe -v -r mod2",
    "lsmod",
    "rmmod mod1",
    "modprobe -r mod1",
    "modprobe -q -r mod1",
    "modprobe -v -r mod3",
    "lsmod",
    "modprobe --first-time -r mod3",
    "modprobe -r mod3",
    "modprobe -v params number=7 'word=a b'",
    "cat /sys/module/params/parameters/number /sys/module/params/parameters/word",
    "modprobe -r params",
    "modprobe params number=x",
    "modprobe params nosuch=1",
    "modprobe -a mod2 nosuch params",
    "modprobe -a -q nosuch mod3",
    "modprobe -r -a -v mod1 mod2 params nosuch",
    "modprobe -r mod3",
    "modprobe nosuch",
    "modprobe -q nosuch",
    "modprobe -v kvm_intel",
    "modprobe -r -v kvm",
    "modprobe -r irqbypass",
    "modprobe ext4",
    "modprobe -r ext4",
    "modprobe -v unknown",
    f"insmod {FILES}/mod2.ko",
    f"insmod {FILES}/mod1.ko",
    f"insmod {FILES}/mod1.ko",
    f"insmod {FILES}/mod2.ko",
    f"rmmod {FILES}/mod1.ko mod2 nosuch",
    "rmmod mod1",
    f"insmod {FILES}/other.ko",
    f"insmod -f {FILES}/other.ko",
    "rmmod -f mod1",
    f"insmod {FILES}/packed.ko.xz",
    "lsmod",
    "rmmod mod1",
    f"insmod {FILES}/damaged.ko",
    f"insmod {FILES}/nosuch.ko",
    "modprobe --remove-holders -r -v nosuch",
    "modprobe mod2",
    "modprobe -r -v mod2",
    "lsmod",
)


@dataclass(frozen=True)
class Answer:
    """What a tool said in the guest."""

    status: int
    out: str
    err: str


def ask(machine: Machine, command: str, path: str) -> Answer:
    """Run a command with a PATH in the guest."""
    said = "echo $?; cat /tmp/out; printf '\\f'; cat /tmp/err"
    script = f"PATH={path}:/bin; {{ {command}; }} >/tmp/out 2>/tmp/err </dev/null; {said}"
    words = machine.check(script, 90)
    status, _, rest = words.partition("\n")
    out, _, err = rest.partition("\f")
    return Answer(int(status), out, err)


@pytest.fixture(scope="module")
def guest(
    image: Image, boot: Callable[..., AbstractContextManager[Machine]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    files = course_tree(image, tmp_path_factory.mktemp("tree"))
    mod1 = files["updates/mod1.ko"]

    def prepare(payload: Payload) -> None:
        for path, data in files.items():
            payload.write(f"/usr/lib/modules/{image.release}/{path}", data)
        for name in ("mod1", "mod2"):
            payload.write(f"{FILES}/{name}.ko", files[f"updates/{name}.ko"])
        payload.write(f"{FILES}/packed.ko.xz", lzma.compress(mod1, check=lzma.CHECK_CRC32))
        payload.write(f"{FILES}/other.ko", mod1.replace(b" SMP preempt ", b" UPX preempt "))
        payload.write(f"{FILES}/damaged.ko", mod1[:2000])

    with boot("the guest with kmod and our tools", with_kmod=True, prepare=prepare) as machine:
        yield machine


def run_daemon(machine: Machine, wanted: bool) -> None:
    """Start or stop it; so many starts in a row would be a fault elsewhere."""
    machine.check(f"systemctl reset-failed kmodd; systemctl {'start' if wanted else 'stop'} kmodd")


@pytest.fixture(params=["with the daemon", pytest.param("without it", marks=pytest.mark.long)])
def ours(request: pytest.FixtureRequest, guest: Machine) -> str:
    """PATH of our tools; the daemon runs, or it does not."""
    run_daemon(guest, request.param == "with the daemon")
    return f"{OURS}:{KMODS}"


def clean(machine: Machine) -> None:
    """None of our modules is loaded, and there is no configuration of ours."""
    machine.run("rm -f /etc/modprobe.d/course.conf /run/trace")
    for name in ("kt_nest", "mod3", "mod2", "params", "mod1", "kvm_intel", "kvm", "irqbypass"):
        machine.run(f"busybox rmmod {name} 2>/dev/null")


@pytest.fixture(scope="module")
def theirs(guest: Machine) -> list[Answer]:
    """What Debian's tools say in the session."""
    clean(guest)
    return [ask(guest, command, KMODS) for command in SESSION]


SAYS = re.compile(r"^\w+: ERROR: the kernel says: .*\n", re.MULTILINE)


def test_same_words_and_status_as_kmod(guest: Machine, ours: str, theirs: list[Answer]) -> None:
    """The whole session with Debian's tools, then with ours: byte for byte, but for what the kernel has logged.

    Debian 12's kmod also names places in its source.
    """
    clean(guest)
    mine = [ask(guest, command, ours) for command in SESSION]
    clean(guest)
    differences = [
        f"{command}\n  kmod  {their}\n  kmodd {my}"
        for command, their, my in zip(SESSION, theirs, mine, strict=True)
        if Answer(their.status, their.out, without_places(their.err.encode()).decode())
        != Answer(my.status, my.out, SAYS.sub("", my.err))
    ]
    assert not differences, "\n".join(differences)
    assert [answer.status for answer in theirs].count(0) > 15
    assert [answer.status for answer in theirs].count(1) > 15


def test_the_course(guest: Machine, ours: str) -> None:
    """mod2 brings mod1 and takes it away again; with mod3 loaded mod1 stays."""
    clean(guest)
    guest.check("dmesg --clear")
    assert ask(guest, "modprobe mod2", ours) == Answer(0, "", "")
    loaded = guest.modules()
    assert loaded["mod1"].split()[1:3] == ["1", "mod2,"]
    assert "mod2" in loaded
    assert ask(guest, "modprobe -r mod2", ours) == Answer(0, "", "")
    assert not {"mod1", "mod2"} & set(guest.modules())
    said = re.findall(r"\] (mod\d: .*)", guest.check("dmesg"))
    assert said == ["mod1: here", "mod2: the answer is 42", "mod2: gone", "mod1: gone"]

    for command in ("modprobe mod2", "modprobe mod3", "modprobe -r mod2"):
        assert ask(guest, command, ours).status == 0
    assert guest.modules()["mod1"].split()[1:3] == ["1", "mod3,"]
    assert ask(guest, "modprobe -r mod1", ours) == Answer(1, "", "modprobe: FATAL: Module mod1 is in use.\n")
    assert ask(guest, "modprobe -r mod3", ours).status == 0
    assert "mod1" not in guest.modules()


def test_the_kernels_reason_stands_behind(guest: Machine, ours: str) -> None:
    clean(guest)
    symbol = ask(guest, f"insmod {FILES}/mod2.ko", ours).err
    assert symbol.splitlines()[0] == f"insmod: ERROR: could not insert module {FILES}/mod2.ko: Unknown symbol in module"
    assert "Unknown symbol mod1_answer" in symbol
    version = ask(guest, f"insmod {FILES}/other.ko", ours).err
    assert re.search(r"version magic '.* UPX .*' should be '.* SMP .*'", version)
    parameter = ask(guest, "modprobe params number=x", ours).err
    assert "invalid for parameter `number'" in parameter


@pytest.mark.parametrize("runs", [True, False])
def test_one_record_for_each_module(guest: Machine, runs: bool) -> None:
    """KMODD_SOURCE=operator, loaded by the lane if the daemon runs and by the tool if not."""
    run_daemon(guest, runs)
    clean(guest)
    mark = guest.mark()
    before = len(guest.module_loads())
    assert ask(guest, "modprobe mod2 && modprobe -r mod2", f"{OURS}:{KMODS}").status == 0
    for name in ("mod1", "mod2"):
        record_of(guest, name, "removed", mark)
    told = [
        (text(each, "KMODD_MODULE"), text(each, "KMODD_RESULT"), text(each, "KMODD_SOURCE"))
        for each in guest.journal.after(mark)
        if text(each, "KMODD_MODULE").startswith("mod")
    ]
    assert sorted(told) == [
        ("mod1", "loaded", "operator"), ("mod1", "removed", "operator"),
        ("mod2", "loaded", "operator"), ("mod2", "removed", "operator"),
    ]  # fmt: skip
    loads = [load for load in guest.module_loads()[before:] if load.module.startswith("mod")]
    assert [load.module for load in loads] == ["mod1", "mod2"]
    assert {load.comm for load in loads} == {"kmodd-loader" if runs else "modprobe"}


LINES = """\
install mod1 {tool} --ignore-install mod1 $CMDLINE_OPTS && echo mod1 $MODPROBE_MODULE >> /tmp/kmodd-trace
install mod2 {tool} --ignore-install mod2 $CMDLINE_OPTS && echo mod2 $MODPROBE_MODULE >> /tmp/kmodd-trace
remove mod2 {tool} -r --ignore-remove mod2
"""


def test_install_and_remove_lines_two_deep(guest: Machine, ours: str) -> None:
    """By hand: they run with the caller's rights, and what they print is the caller's."""
    clean(guest)
    guest.check("rm -f /tmp/kmodd-trace")
    guest.check(f"cat > /etc/modprobe.d/course.conf <<'END'\n{LINES.format(tool=f'{OURS}/modprobe')}END\n")
    answer = ask(guest, "modprobe -v mod2", ours)
    assert (answer.status, answer.err) == (0, "")
    assert answer.out.count("insmod") == 2, answer.out
    assert {"mod1", "mod2"} <= set(guest.modules())
    assert guest.check("cat /tmp/kmodd-trace") == "mod1 mod1\nmod2 mod2\n"
    assert ask(guest, "modprobe -r mod2", ours).status == 0
    assert not {"mod1", "mod2"} & set(guest.modules())
    clean(guest)


def test_install_lines_in_a_lane_do_not_wait_for_it(guest: Machine) -> None:
    """The daemon loads mod2 itself: its lane runs a modprobe that runs a modprobe; none may queue behind the lane."""
    run_daemon(guest, True)
    clean(guest)
    lines = LINES.format(tool=f"env -i {OURS}/modprobe").replace(" && echo", " || echo")
    guest.check(f"cat > /etc/modprobe.d/course.conf <<'END'\n{lines}END\n")
    guest.check("systemctl reload kmodd")
    begin = "import sys; sys.path.insert(0, '/usr/lib/kmodd'); from kmodd.cli.client import call; print(call("
    assert "'loaded'" in guest.check(f"/usr/bin/python3 -c \"{begin}'Load', request='mod2'))\"", 60)
    assert {"mod1", "mod2"} <= set(guest.modules())
    assert "'removed'" in guest.check(f"/usr/bin/python3 -c \"{begin}'Unload', request='mod2'))\"", 60)
    assert "mod2" not in guest.modules()
    clean(guest)


def test_the_kernels_own_request_does_not_wait_for_a_lane(guest: Machine) -> None:
    """kt_nest's init sits in the lane and asks the kernel for mod1: its modprobe must load by itself."""
    run_daemon(guest, True)
    clean(guest)
    before = guest.check("cat /proc/sys/kernel/modprobe").strip()
    guest.check(f"echo {OURS}/modprobe > /proc/sys/kernel/modprobe")
    try:
        assert ask(guest, "modprobe kt_nest", f"{OURS}:{KMODS}") == Answer(0, "", "")
        assert {"kt_nest", "mod1"} <= set(guest.modules())
    finally:
        guest.check(f"echo {before} > /proc/sys/kernel/modprobe")
    clean(guest)


def test_in_place_of_kmods(guest: Machine) -> None:
    """The commands of docs/CONFIGURATION.md; then a root shell runs our tools, and a full path still runs kmod's."""
    page = (Path(__file__).parents[2] / "docs/CONFIGURATION.md").read_text().partition("## Using kmodd's tools")[2]
    link, undo = re.findall(r"^    (\S.*)$", page, re.MULTILINE)[:2]
    run_daemon(guest, True)
    guest.check(link)
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert guest.check(f"{path}; readlink -f $(command -v modprobe)").strip() == "/usr/bin/kmodd"
    clean(guest)
    guest.check(f"{path}; modprobe mod2")
    assert {"mod1", "mod2"} <= set(guest.modules())
    assert guest.check(f"{path}; lsmod").splitlines()[0] == "Module                  Size  Used by"
    guest.check(f"{path}; rmmod mod2 && modprobe -r mod1")
    assert guest.check("readlink -f /usr/sbin/modprobe").strip() == "/usr/bin/kmod"
    guest.check(undo)
    assert guest.check(f"{path}; readlink -f $(command -v modprobe)").strip() == "/usr/bin/kmod"
    clean(guest)
