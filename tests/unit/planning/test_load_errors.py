"""Each refusal of the kernel with its own verdict: a level, and words an administrator can act on."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kmodd.host.kernel_facts import LOCKDOWN, MODULES_DISABLED, PANIC_ON_OOPS, SIG_ENFORCE, read_facts
from kmodd.names import ModuleName
from kmodd.planning.load_errors import KernelFacts, Lockdown, of_load, of_removal
from kmodd.planning.plan import Insmod, Reason, Rmmod
from kmodd.planning.record import ERR, INFO, NOTICE, WARNING, record_of
from kmodd.planning.reply import Reply, Stage, outcome_of
from kmodd.planning.request import Request

FREE = KernelFacts(lockdown="none")
ASKED = Reason("asked", "")
LOAD = Insmod(ModuleName("e1000e"), "/lib/modules/6/e1000e.ko", "", ASKED)

# ── loading ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("code", "facts", "level", "words"),
    [
        (errno.EPERM, KernelFacts(module_blacklist=("dummy", "e1000e")), INFO, "module_blacklist=e1000e"),
        (errno.EPERM, KernelFacts(modules_disabled=True, module_blacklist=("e1000e",)), INFO, "module_blacklist="),
        (errno.EPERM, KernelFacts(modules_disabled=True, lockdown="integrity"), NOTICE, "until the next boot"),
        (errno.EPERM, KernelFacts(lockdown="integrity"), ERR, "locked down (integrity)"),
        (errno.EPERM, KernelFacts(lockdown="confidentiality"), ERR, "locked down (confidentiality)"),
        (errno.EPERM, FREE, ERR, "no CAP_SYS_MODULE, or a security module"),
        (errno.EPERM, KernelFacts(module_blacklist=("e1000",)), ERR, "no CAP_SYS_MODULE, or a security module"),
        (errno.EPERM, None, ERR, "module_blacklist=, modules_disabled, lockdown or no CAP_SYS_MODULE"),
        (errno.EKEYREJECTED, KernelFacts(sig_enforce=True), ERR, "module.sig_enforce"),
        (errno.EKEYREJECTED, FREE, ERR, "changed after it was signed"),
        (errno.EKEYREJECTED, None, ERR, "signature missing, unknown or wrong"),
        (errno.EBADMSG, FREE, ERR, "signature cannot be read"),
        (errno.ENOKEY, FREE, ERR, "a key that the kernel does not know"),
        (errno.ENODEV, FREE, NOTICE, "no such device"),
        (errno.ENOENT, FREE, WARNING, "unknown symbol"),
        (errno.ENOEXEC, FREE, ERR, "not a module for this kernel"),
        (errno.EACCES, FREE, ERR, "audit log"),
        (errno.ENOTTY, FREE, ERR, "init function failed"),
    ],
)
def test_verdict_of_a_refused_load(code: int, facts: KernelFacts | None, level: int, words: str) -> None:
    """Levels where systemd's module-util.c has an opinion: ENODEV notice, ENOENT warning, deny-listed info."""
    load_error = of_load("e1000e", code, facts)
    assert load_error.level == level
    assert words in load_error.words


def test_no_two_causes_have_the_same_words() -> None:
    every = [of_load("x", code, FREE).words for code in
             (errno.EPERM, errno.EKEYREJECTED, errno.EBADMSG, errno.ENOKEY, errno.ENOPKG, errno.ENODATA, errno.ENODEV,
              errno.ENOENT, errno.ENOEXEC, errno.EBUSY, errno.EINTR, errno.EINVAL, errno.ENOMEM, errno.EACCES,
              errno.ENOSYS, errno.EOPNOTSUPP, errno.ETXTBSY, errno.EIO)]  # fmt: skip
    for facts in (None, KernelFacts(True), KernelFacts(lockdown="integrity"), KernelFacts(module_blacklist=("x",))):
        every.append(of_load("x", errno.EPERM, facts).words)
    every += [of_load("x", errno.EKEYREJECTED, facts).words for facts in (None, KernelFacts(sig_enforce=True))]
    assert len(set(every)) == len(every)
    assert all(every)


def reply(code: int, stage: Stage, detail: str = "") -> Reply:
    return Reply(code, stage, 7, detail)


def test_the_verdict_is_in_the_record() -> None:
    request = Request("pci:v1", "uevent")
    outcome = outcome_of(request, LOAD, reply(errno.EPERM, "kernel"), KernelFacts(modules_disabled=True))
    told = record_of(outcome)
    assert told.priority == NOTICE
    assert told.message == (
        "Failed to load e1000e: EPERM, no module can be loaded until the next boot: kernel.modules_disabled=1 is set"
    )
    assert record_of(outcome_of(request, LOAD, reply(errno.EPERM, "kernel"))).priority == ERR


def test_an_errno_that_the_kernel_did_not_give_has_no_verdict() -> None:
    """EPERM of opening a file is no module_blacklist=."""
    facts = KernelFacts(module_blacklist=("e1000e",))
    outcome = outcome_of(Request("x", "uevent"), LOAD, reply(errno.EPERM, "file", "/x.ko: not root's"), facts)
    assert (outcome.result, outcome.load_error) == ("failed", None)
    assert "EPERM, /x.ko: not root's" in record_of(outcome).message
    for code in (0, errno.EEXIST):
        assert outcome_of(Request("x", "uevent"), LOAD, reply(code, "kernel"), facts).load_error is None


# ── removing ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_verdict_of_a_refused_removal() -> None:
    assert of_removal(errno.EPERM, KernelFacts(modules_disabled=True)).level == NOTICE
    assert of_removal(errno.EPERM, FREE).words == "not permitted: modules_disabled or no CAP_SYS_MODULE"
    step = Rmmod(ModuleName("loop"), ASKED)
    told = record_of(outcome_of(Request("loop", "operator"), step, reply(errno.EAGAIN, "kernel")))
    assert (told.priority, told.message) == (
        ERR, "Failed to remove loop: EAGAIN, the module is in use",
    )  # fmt: skip


# ── facts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def put(root: Path, path: str, text: str) -> None:
    (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
    (root / path[1:]).write_text(text)


def test_facts_of_a_kernel(tmp_path: Path) -> None:
    assert read_facts(str(tmp_path)) == KernelFacts(), "nothing that can be read"
    for on, expected in (("1\n", True), ("0\n", False)):
        put(tmp_path, MODULES_DISABLED, on)
        put(tmp_path, PANIC_ON_OOPS, on)
        put(tmp_path, SIG_ENFORCE, "Y\n" if expected else "N\n")
        facts = read_facts(str(tmp_path))
        assert (facts.modules_disabled, facts.panic_on_oops, facts.sig_enforce) == (expected,) * 3
    put(tmp_path, "/proc/cmdline", "quiet module_blacklist=floppy,pcspkr\n")
    assert read_facts(str(tmp_path)).module_blacklist == ("floppy", "pcspkr")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("[none] integrity confidentiality\n", "none"), ("none [integrity] confidentiality\n", "integrity"),
     ("none integrity [confidentiality]\n", "confidentiality"), ("", ""), ("none [later]\n", "")],
)  # fmt: skip
def test_lockdown(tmp_path: Path, text: str, expected: Lockdown) -> None:
    """The form of security/lockdown/lockdown.c: the one in force stands in brackets."""
    put(tmp_path, LOCKDOWN, text)
    assert read_facts(str(tmp_path)).lockdown == expected


def test_facts_of_this_machine() -> None:
    """Read from the real files, whatever they say here."""
    facts = read_facts()
    for path, is_on in ((MODULES_DISABLED, facts.modules_disabled), (PANIC_ON_OOPS, facts.panic_on_oops)):
        if os.path.exists(path):
            assert (Path(path).read_text() == "1\n") is is_on, path
