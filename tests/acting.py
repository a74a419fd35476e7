"""Scenarios of modprobe, insmod, rmmod and lsmod on a fake machine, and the functions that run ours in them.

tests/unit/cli/test_modprobe_execute.py compares with what is written down in fixtures/acting/expected,
tests/differential/test_acting.py with kmod 34 and 30 on an equal machine.
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kmodd.cli.kmod import insmod, lsmod, modprobe, rmmod
from kmodd.loader.in_process import Machine
from tests import rootfs
from tests.fake_machine import FakeMachine, fill_modules
from tests.rootfs import Said

KVM = {"kvm_intel": ("kvm", "irqbypass"), "kvm": ("irqbypass",)}
CHAIN = {"tun": ("dummy",), "dummy": ("loop",)}
DRIVER = "kernel/drivers/block/loop.ko"


@dataclass(frozen=True)
class Scenario:
    """A machine, and commands that run on it one after the other."""

    name: str
    commands: Sequence[str]
    config: str = ""
    needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    refuse: Mapping[str, int] = field(default_factory=dict)
    refuse_removal: Mapping[str, int] = field(default_factory=dict)
    users: Mapping[str, int] = field(default_factory=dict)
    loaded: Sequence[str] = ()
    missing: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    def build(self, root: Path) -> FakeMachine:
        """Make the machine below `root`, which must be empty."""
        rootfs.build("names", root)
        fill_modules(root)
        (root / "etc/modprobe.d").mkdir(parents=True, exist_ok=True)
        (root / "etc/modprobe.d/t.conf").write_text(self.config)
        for name in self.missing:
            next(root.rglob(name)).unlink()
        machine = FakeMachine(root, dict(self.needs), dict(self.refuse), dict(self.refuse_removal), dict(self.users))
        machine.add(*self.loaded)
        (root / "short").write_text("abc")
        return machine


SCENARIOS = (
    Scenario("nothing to do", ["modprobe", "modprobe -a", "modprobe -r", "modprobe -q", "insmod", "rmmod", "rmmod -f"]),
    Scenario(
        "dependencies in order, and back",
        [
            "modprobe -v kvm-intel a=1",
            "modprobe -v kvm_intel",
            "modprobe --first-time kvm_intel",
            "lsmod",
            "rmmod irqbypass",
            "modprobe -n -v -r kvm_intel",
            "modprobe -D -r kvm_intel",
            "modprobe -v -r kvm_intel",
            "modprobe -r -v irqbypass",
            "lsmod",
        ],
        needs=KVM,
    ),
    Scenario(
        "a third user keeps it",
        ["modprobe kvm_intel", "modprobe -v -r kvm_intel", "modprobe -r kvm", "lsmod"],
        needs={**KVM, "loop": ("kvm",)},
        loaded=["irqbypass", "kvm", "loop"],
    ),
    Scenario(
        "in use",
        [
            "modprobe kvm-intel",
            "modprobe -r kvm irqbypass",
            "modprobe -a -r kvm irqbypass loop",
            "modprobe -q -r kvm",
            "modprobe -r -n -v kvm",
            "rmmod kvm irqbypass",
            "modprobe -r --remove-holders -v irqbypass",
        ],
        needs=KVM,
    ),
    Scenario(
        "used by a device", ["rmmod loop", "modprobe -r loop", "rmmod -f loop"], users={"loop": 2}, loaded=["loop"]
    ),
    Scenario(
        "parameters",
        ["modprobe loop 'a=b c' d=\"e f\" g", "modprobe -a tun dummy", "modprobe tun"],
        config="options loop max=1\noptions dummy n=2\n",
    ),
    *(
        Scenario(
            f"refused with {errno.errorcode[code]}",
            ["modprobe loop", "modprobe -q loop", "modprobe -a loop dummy", f"insmod {{tree}}/{DRIVER} a=b", "lsmod"],
            refuse={"loop": code},
        )
        for code in (
            errno.ENOENT,
            errno.ENODEV,
            errno.ENOEXEC,
            errno.EPERM,
            errno.EINVAL,
            errno.EBUSY,
            errno.EKEYREJECTED,
            errno.ENOKEY,
            errno.EEXIST,
            errno.ENOMEM,
            errno.ESRCH,
        )
    ),
    Scenario(
        "a dependency refuses", ["modprobe -v kvm-intel", "modprobe kvm-intel"], needs=KVM, refuse={"kvm": errno.ENODEV}
    ),
    Scenario("a dependency has no file", ["modprobe -v kvm-intel"], missing=["kvm.ko"]),
    Scenario(
        "it has no file itself", ["modprobe -v kvm-intel", "modprobe -q kvm-intel"], needs=KVM, missing=["kvm-intel.ko"]
    ),
    Scenario(
        "an alias of nothing", ["modprobe -v x", "modprobe -q x", "modprobe --first-time x"], config="alias x nosuch\n"
    ),
    Scenario(
        "a softdep of nothing", ["modprobe -v loop"], config="alias x nosuch\nsoftdep loop pre: x dummy post: tun"
    ),
    Scenario(
        "not found",
        [
            "modprobe nosuch",
            "modprobe -q nosuch",
            "modprobe -a nosuch loop other",
            "modprobe -a -q nosuch",
            "modprobe 'a[b'",
            "modprobe -r 'a[b'",
            "modprobe -r nosuch",
            "modprobe -r -a nosuch loop",
            "lsmod",
        ],
    ),
    Scenario(
        "first time",
        [
            "modprobe --first-time loop",
            "modprobe --first-time loop",
            "modprobe --first-time -r loop",
            "modprobe --first-time -r loop",
            "modprobe --first-time -r -a loop dummy",
            "modprobe --first-time crypto_algapi",
            "modprobe --first-time -q loop",
            "modprobe -a --first-time loop dummy",
        ],
    ),
    Scenario(
        "first time, with a softdep that needs it",
        ["modprobe -v --first-time kvm", "lsmod", "modprobe -v kvm-intel"],
        needs=KVM,
        config="softdep kvm post: kvm-intel\n",
    ),
    Scenario(
        "softdeps in a cycle",
        ["modprobe -v loop", "modprobe -v tun", "lsmod"],
        config="softdep loop pre: dummy\nsoftdep dummy pre: tun post: loop\nsoftdep tun pre: loop\n",
    ),
    Scenario(
        "softdeps of dependencies in a cycle",
        ["modprobe -v kvm-intel", "lsmod"],
        needs=KVM,
        config="softdep irqbypass pre: kvm-intel\nsoftdep kvm post: irqbypass\n",
    ),
    Scenario(
        "another process is faster",
        ["modprobe -v loop", "modprobe --first-time loop", "modprobe -a loop dummy", "modprobe -v kvm-intel"],
        needs=KVM,
        refuse={"loop": errno.EEXIST, "kvm": errno.EEXIST},
    ),
    Scenario(
        "builtin",
        [
            "modprobe -v crypto_algapi",
            "modprobe -r crypto_algapi",
            "modprobe -a -r crypto_algapi loop",
            "rmmod crypto_algapi loop",
        ],
    ),
    Scenario(
        "install commands",
        [
            "modprobe loop",
            "modprobe -v loop a=b",
            "modprobe -i -v loop x=y",
            "modprobe -r -v loop",
            "modprobe -r -i loop",
            "modprobe -n -v loop",
        ],
        config="install loop echo $MODPROBE_MODULE $CMDLINE_OPTS; exit 3\noptions loop x=1\n"
        "remove loop echo $MODPROBE_MODULE $CMDLINE_OPTS; exit 2\n",
    ),
    Scenario(
        "commands get the options",
        ["modprobe -q -v loop a=b", "modprobe -v loop", "modprobe -C /etc/modprobe.d -q loop", "modprobe -r -q loop"],
        config="install loop echo out $CMDLINE_OPTS $MODPROBE_OPTIONS.\nremove loop echo gone $MODPROBE_OPTIONS.\n",
    ),
    Scenario(
        "options from the environment",
        ["modprobe loop", "modprobe -v loop", "modprobe -r loop"],
        config="install loop echo out $MODPROBE_OPTIONS.\n",
        env={"MODPROBE_OPTIONS": "-q -v"},
    ),
    Scenario(
        "a command dies",
        ["modprobe loop", "modprobe -r loop"],
        config="install loop kill -9 $$\nremove loop kill -9 $$",
    ),
    Scenario(
        "a dependency's command fails",
        ["modprobe kvm-intel", "modprobe -v -i kvm-intel"],
        needs=KVM,
        config="install kvm exit 9\n",
    ),
    Scenario(
        "a name without file",
        ["modprobe only", "modprobe only a=b", "modprobe -r only"],
        config="install only echo it $CMDLINE_OPTS",
    ),
    Scenario(
        "a softdep fails",
        ["modprobe -v loop", "lsmod"],
        config="softdep loop pre: dummy post: tun",
        refuse={"dummy": errno.ENODEV, "tun": errno.EPERM},
    ),
    Scenario(
        "softdeps go too",
        ["modprobe -n -v -r loop", "modprobe -r -v loop"],
        config="softdep loop pre: dummy post: tun\nsoftdep tun post: fuse\n",
        loaded=["loop", "dummy", "tun", "fuse"],
    ),
    Scenario(
        "softdeps stay with -i",
        ["modprobe -r -i -v loop"],
        config="softdep loop pre: dummy post: tun\n",
        loaded=["loop", "dummy", "tun"],
    ),
    *(
        Scenario(
            f"a softdep is in use, {words}",
            [f"modprobe {words} -v loop"],
            config="softdep loop pre: dummy post: tun\n",
            loaded=["loop", "dummy", "tun"],
            users={"tun": 1},
        )
        for words in ("-r", "-r -a", "-r -q")
    ),
    Scenario(
        "a softdep's command fails",
        ["modprobe -r -v loop"],
        config="softdep loop post: tun\nremove tun exit 1\n",
        loaded=["loop", "tun"],
    ),
    Scenario(
        "a softdep is builtin", ["modprobe -r -v loop"], config="softdep loop pre: crypto_algapi\n", loaded=["loop"]
    ),
    Scenario(
        "the kernel will not let go",
        [
            "modprobe -r dummy",
            "modprobe -f -r dummy",
            "modprobe -r -q dummy",
            "rmmod dummy loop",
            "rmmod -f dummy",
            "modprobe -r dummy tun",
        ],
        loaded=["dummy", "loop", "tun"],
        refuse_removal={"dummy": errno.EBUSY},
    ),
    Scenario(
        "forced",
        [
            "modprobe -f loop",
            "modprobe --force-vermagic dummy",
            "modprobe --force-modversion tun a=1",
            "insmod -f {tree}/kernel/fs/fuse/fuse.ko",
            "modprobe -f -r loop",
        ],
    ),
    Scenario(
        "blacklisted",
        ["modprobe -v x", "modprobe -v loop", "modprobe -b tun", "modprobe -v -b fuse", "lsmod"],
        config="alias x loop\nblacklist loop\nblacklist tun\n",
    ),
    Scenario(
        "several hits",
        ["modprobe -v x", "modprobe --first-time x", "modprobe -r -v x"],
        config="alias x dummy\nalias x loop\nalias x tun\n",
        refuse={"loop": errno.ENODEV},
    ),
    Scenario(
        "the last hit refuses",
        ["modprobe -v x", "modprobe -r x"],
        config="alias x dummy\nalias x loop\n",
        refuse={"loop": errno.ENODEV},
    ),
    Scenario(
        "files",
        [
            f"insmod {{tree}}/{DRIVER}",
            f"insmod {{tree}}/{DRIVER}",
            "lsmod",
            "rmmod {tree}/kernel/drivers/block/loop.ko",
            "insmod /nowhere/x.ko",
            "insmod nowhere.ko",
            "insmod -",
            "insmod {root}/etc",
            "insmod {root}/short",
            f"insmod {{tree}}/{DRIVER} a=b d",
            "rmmod -v loop.ko",
            "rmmod -w loop",
            "rmmod a-b.c x",
        ],
    ),
    Scenario(
        "holders of holders", ["modprobe -r -v --remove-holders loop"], needs=CHAIN, loaded=["loop", "dummy", "tun"]
    ),
    Scenario(
        "holders of holders, dry",
        ["modprobe -r -n -v --remove-holders loop"],
        needs=CHAIN,
        loaded=["loop", "dummy", "tun"],
    ),
    Scenario("holders without -r", ["modprobe -v --remove-holders tun"], loaded=["loop"]),
    Scenario("an alias of nothing is removed", ["modprobe -r -v x"], config="alias x nosuch\nalias x other\n"),
    Scenario(
        "an alias of one thing is removed",
        ["modprobe -r -v x", "modprobe -r -v x", "modprobe -r y", "modprobe -r z"],
        config="alias x nosuch\nalias x loop\nalias y crc16\nalias z only\nremove only true\n",
        loaded=["loop"],
    ),
    Scenario("values with blanks", [f"insmod {{tree}}/{DRIVER} 'a=b c' 'd=\"e f\"' 'g h' '' 'i=j=k l'"]),
    Scenario("an option that does nothing", [f"insmod -p {{tree}}/{DRIVER} a=b d"]),
    Scenario(
        "options of the tools",
        ["insmod -h", "insmod --x", "insmod -z", "rmmod -h", "rmmod --x", "rmmod -fz", "lsmod x"],
    ),
    Scenario(
        "a list",
        ["lsmod"],
        needs={"a": ("c",), "a_very_long_name_of_a_module": ("c",), "b": ("c",)},
        loaded=["c", "b", "a", "a_very_long_name_of_a_module"],
    ),
)

MAINS: Mapping[str, Callable[..., int]] = {
    "modprobe": modprobe.main,
    "insmod": insmod.main,
    "rmmod": rmmod.main,
    "lsmod": lsmod.main,
}


def words_of(command: str, machine: FakeMachine) -> list[str]:
    """A command line of a scenario, its program first; `{tree}` and `{root}` are paths as a tool is given them."""
    return shlex.split(command.format(tree=f"/lib/modules/{rootfs.RELEASE}", root=machine.root))


def run_ours(
    machine: FakeMachine, words: Sequence[str], env: Mapping[str, str], capture: pytest.CaptureFixture[bytes]
) -> Said:
    """Run one of our tools on a fake machine; the output of commands counts as its own, as on a pipe."""
    tool, *argv = [word.removeprefix(str(machine.root)) for word in words]
    arguments = ["--root", str(machine.root), *(["-S", rootfs.RELEASE] if tool == "modprobe" else []), *argv]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MODPROBE_OPTIONS", "MODPROBE_MODULE"):
            patch.delenv(name, raising=False)
        for name, value in env.items():
            patch.setenv(name, value)
        patch.setattr(os, "uname", lambda: os.uname_result(("", "", rootfs.RELEASE, "", "x86_64")))
        if tool == "lsmod":
            status = lsmod.main(arguments)
            sys.stdout.flush()
        else:
            status = MAINS[tool](arguments, Machine(machine, lambda _: None))
    captured = capture.readouterr()
    return Said(captured.out, captured.err, status)
