"""The presets of data/policy.d: each has the effect of its first line, and all combine."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmodd.config.modprobe_d import ConfFile
from kmodd.config.policy_d import Phase, parse
from kmodd.dataclass import replace
from kmodd.kernel.requester import Requester
from kmodd.planning.policy import Policy, PolicyQuery

FOLDER = Path(__file__).parents[3] / "data/policy.d"
USB, RARE, HARDWARE, UNPRIVILEGED = PRESETS = sorted(path.name for path in FOLDER.iterdir())

ROOT = Requester(10, "sh", "/usr/bin/sh", 0, 0, "/user.slice/x.scope", "session-1.scope", False)
USER = replace(ROOT, uid=1000, loginuid=1000)
CONTAINER_ROOT = replace(ROOT, container=True, unit="docker-1.scope")
MAPPED_ROOT = replace(CONTAINER_ROOT, uid=100000)
LOADER = replace(ROOT, exe="/usr/bin/python3.11", unit="kmodd-loader@3.service")
KTHREAD = Requester(40, "kworker/0:1", "", 0, None, "/", "", False, is_kernel=True)
CIPHERS = replace(KTHREAD, comm="cryptomgr_probe")
CARD = PolicyQuery("uevent", "pci:v00008086d000010D3", "running", "pci", ("/devices/pci0000:00/0000:00:03.0",))
ADAPTER = PolicyQuery("uevent", "usb:v0B95p7720", "running", "usb", ("/devices/pci0000:00/usb1/1-1/1-1:1.0",))


def policy(*names: str, local: str = "") -> Policy:
    files = [ConfFile(name, (FOLDER / name).read_text()) for name in names]
    parsed = parse([ConfFile("10-local.conf", local), *files])
    assert parsed.problems == ()
    return Policy("enforce", parsed.rules)


def refused(
    rules: Policy, request: str, module: str, requester: Requester | None = ROOT, phase: Phase = "running"
) -> bool:
    return rules.judge(PolicyQuery("request", request, phase, requester=requester), module).refused


@pytest.mark.parametrize("names", [(name,) for name in PRESETS] + [tuple(PRESETS)], ids="+".join)
@pytest.mark.parametrize("phase", ["boot", "running"])
def test_hardware_and_operators_are_served_by_all(names: tuple[str, ...], phase: Phase) -> None:
    rules = policy(*names)
    for asking, module in ((CARD, "e1000e"), (replace(CARD, origin="coldplug"), "e1000e"), (ADAPTER, "asix")):
        assert not rules.judge(replace(asking, phase=phase), module).refused
    for origin in ("operator", "boot"):
        assert not rules.judge(PolicyQuery(origin, "sctp", phase, requester=None), "sctp").refused
    # a driver in the middle of being loaded, and one at work
    for requester in (LOADER, KTHREAD):
        assert not refused(rules, "mdio:00000000000111001100100100010101", "realtek", requester, phase)
    # drivers that do not wait: the requester is unknown
    for name in ("iwlmvm", "iwldvm", "acpi_ipmi", "ledtrig:netdev"):
        assert not refused(rules, name, name.replace(":", "_"), None, phase)


@pytest.mark.parametrize("name", PRESETS)
def test_each_is_explained(name: str) -> None:
    text = (FOLDER / name).read_text()
    for words in ("Enable:", f"/usr/share/kmodd/policy.d/{name}", "Protects from:", "May break:", "Exceptions:"):
        assert words in text, words


@pytest.mark.parametrize("name", PRESETS)
def test_the_exceptions_that_comments_offer_are_rules(name: str) -> None:
    offered = [
        line.lstrip("# ") for line in (FOLDER / name).read_text().splitlines() if line.startswith("#     allow ")
    ]
    assert offered
    assert parse([ConfFile("offered", "\n".join(offered))]).problems == ()


# ── no-unprivileged-autoload ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("request_", "module"),
    [
        ("net-pf-38", "af_alg"),
        ("algif-hash", "algif_hash"),
        ("net-pf-2-proto-132", "sctp"),
        ("fs-ntfs3", "ntfs3"),
        ("tty-ldisc-13", "n_hdlc"),
        ("net-pf-16-proto-4-type-2-132", "sctp_diag"),
        ("char-major-10-200", "tun"),
        ("iwlmvm-x", "iwlmvm"),
    ],
)
def test_no_unprivileged_autoload(request_: str, module: str) -> None:
    """Kernel requests by a uid other than 0 or from containers are refused; unknown counts as not root."""
    rules = policy(UNPRIVILEGED)
    for requester in (USER, CONTAINER_ROOT, MAPPED_ROOT, None):
        assert refused(rules, request_, module, requester)
        assert refused(rules, request_, module, requester, "boot")
    for requester in (ROOT, KTHREAD, LOADER):
        assert not refused(rules, request_, module, requester)


def test_the_names_that_users_may_still_load() -> None:
    rules = policy(UNPRIVILEGED)
    for request, module in (
        ("char-major-10-229", "fuse"),
        ("char-major-116-1", "snd_seq"),
        ("net-pf-16-proto-4-type-1", "unix_diag"),
        ("net-pf-16-proto-4-type-2-6", "tcp_diag"),
    ):
        assert not refused(rules, request, module, USER)
        for requester in (CONTAINER_ROOT, MAPPED_ROOT, None):
            assert refused(rules, request, module, requester)
    assert refused(rules, "net-pf-16-proto-4-type-12", "x", USER)


def test_the_first_matching_exception_counts() -> None:
    local = "allow origin=request uid=33 container=no request=crypto-*,algif-*,net-pf-38\n"
    rules = policy(UNPRIVILEGED, local=local)
    assert not refused(rules, "net-pf-38", "af_alg", replace(USER, uid=33))
    assert refused(rules, "net-pf-38", "af_alg", USER)
    assert refused(rules, "net-pf-38", "af_alg", None)


# ── the others ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_rare_protocols() -> None:
    """For root as well, and as a dependency of another request."""
    rules = policy(RARE)
    for requester in (ROOT, USER, CONTAINER_ROOT, None):
        for module in ("sctp", "dccp_ipv4", "rds", "tipc", "ax25", "can_raw", "appletalk", "n_hdlc"):
            assert refused(rules, "x", module, requester)
        for module in ("af_alg", "ext4", "bluetooth", "l2tp_ppp", "tls", "vsock"):
            assert not refused(rules, "x", module, requester)
    assert not refused(rules, "net-pf-16-proto-4-type-2-132", "inet_diag")
    assert refused(rules, "net-pf-16-proto-4-type-2-132", "sctp")


def test_hardware_only_after_boot() -> None:
    rules = policy(HARDWARE)
    for requester in (ROOT, USER, CONTAINER_ROOT, None):
        for request, module in (("fs-xfs", "xfs"), ("net-pf-38", "af_alg"), ("rtnl-link-bridge", "bridge")):
            assert refused(rules, request, module, requester)
            assert not refused(rules, request, module, requester, "boot")
    for requester in (replace(LOADER, uid=1000), replace(LOADER, container=True), replace(KTHREAD, uid=1000)):
        assert refused(rules, "fs-xfs", "xfs", requester)


def test_no_new_usb_network_while_locked() -> None:
    rules = policy(USB)
    locked = replace(ADAPTER, flags=frozenset({"locked"}))
    for module in ("asix", "r8152", "cdc_ether", "rtl8xxxu", "usbnet"):
        assert rules.judge(locked, module).refused
        assert not rules.judge(ADAPTER, module).refused
    for module in ("usb_storage", "usbhid", "snd_usb_audio"):
        assert not rules.judge(locked, module).refused
    assert not rules.judge(replace(CARD, flags=frozenset({"locked"})), "brcmfmac").refused


def test_the_rules_in_the_documentation_are_rules() -> None:
    text = (FOLDER.parents[1] / "docs/POLICY.md").read_text()
    block = text.split("## Rules\n\n```\n")[1].split("```")[0]
    parsed = parse([ConfFile("POLICY.md", block)])
    assert (len(parsed.rules), parsed.problems) == (4, ())


def test_a_user_gets_no_rare_cipher_by_way_of_the_thread_of_the_kernel() -> None:
    """`ecb(serpent)`: the kernel asks for serpent itself, whatever the answer to the whole name was."""
    rules = policy(UNPRIVILEGED)
    assert refused(rules, "crypto-ecb(serpent)", "serpent_generic", USER)
    assert refused(rules, "crypto-serpent", "serpent_generic", CIPHERS)
    assert not refused(rules, "crypto-serpent", "serpent_generic")
    allowing = policy(UNPRIVILEGED, local="allow origin=request request=crypto-serpent")
    assert not refused(allowing, "crypto-serpent", "serpent_generic", CIPHERS)


@pytest.mark.parametrize("name", ["xts", "aes", "essiv", "sha256", "ccm", "cmac", "gcm", "hmac", "cbc", "cts"])
def test_disks_networks_and_file_systems_get_their_usual_ciphers(name: str) -> None:
    assert not refused(policy(UNPRIVILEGED), f"crypto-{name}", name, CIPHERS)
