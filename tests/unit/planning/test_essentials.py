"""What this machine does not come up without: the disk of /, and its only network."""

from __future__ import annotations

import pytest

from kmodd.config.modprobe_d import Config
from kmodd.index.catalog import Catalog, Snapshot
from kmodd.index.layer import Layer
from kmodd.planning.essentials import Use, cipher_aliases, lost_without, vital_without

INDEX = {
    "modules.dep": (
        b"e1000.ko:\nigb.ko:\next4.ko: jbd2.ko\njbd2.ko:\nvirtio_blk.ko: virtio.ko\nvirtio.ko:\n"
        b"aesni.ko:\naes_generic.ko:\n"
    ),
    "modules.alias": b"alias fs-ext4 ext4\nalias crypto-aes aesni\nalias crypto-aes aes_generic\n",
}
SNAPSHOT = Snapshot(Catalog([Layer("/lib/modules/6.1.0", INDEX.get)]), Config())
DATA = Use("mount", "/srv", frozenset({"virtio_blk"}), ("fs-ext4",))
SWAP = Use("swap", "/dev/vda2", frozenset({"virtio_blk"}))
DEFAULT = Use("network", "eth0", frozenset({"e1000"}), is_default=True)
OTHER = Use("network", "eth1", frozenset({"igb"}), is_default=True)
LOCAL = Use("network", "eth2", frozenset({"igb"}))
BUILTIN = Use("network", "eth3", frozenset(), is_default=True)


def test_the_only_network_is_vital_also_without_a_default_route() -> None:
    assert vital_without(["igb"], [LOCAL], SNAPSHOT) == (LOCAL,)
    assert vital_without(["igb"], [LOCAL, DEFAULT], SNAPSHOT) == ()
    assert vital_without(["e1000"], [DEFAULT, LOCAL], SNAPSHOT) == (DEFAULT,)
    assert vital_without(["e1000"], [DEFAULT, OTHER], SNAPSHOT) == ()
    assert vital_without(["e1000", "igb"], [DEFAULT, OTHER], SNAPSHOT) == (DEFAULT, OTHER)


def test_a_second_network_with_a_built_in_driver_remains() -> None:
    assert vital_without(["e1000"], [DEFAULT, BUILTIN], SNAPSHOT) == ()
    assert vital_without(["e1000"], [], SNAPSHOT) == ()


def test_a_use_needs_the_driver_the_file_system_and_their_dependencies() -> None:
    """A removal takes any use; only that of / and the network count for the next boot."""
    for module in ("virtio_blk", "virtio"):
        assert lost_without([module], [DATA, SWAP, LOCAL], SNAPSHOT) == (DATA, SWAP)
    for module in ("ext4", "jbd2"):
        assert lost_without([module], [DATA, SWAP, LOCAL], SNAPSHOT) == (DATA,)
    assert lost_without(["igb"], [DATA, SWAP, LOCAL], SNAPSHOT) == (LOCAL,)
    assert lost_without([], [DATA, SWAP, LOCAL], SNAPSHOT) == lost_without(["e1000"], [DATA, LOCAL], SNAPSHOT) == ()
    assert vital_without(["ext4"], [DATA, SWAP], SNAPSHOT) == ()
    assert [str(use) for use in (DATA, SWAP, LOCAL)] == [
        "the file system at /srv", "the swap on /dev/vda2", "the interface eth2, which carries a route",
    ]  # fmt: skip


def test_a_name_is_lost_with_the_last_module_that_it_brings() -> None:
    """One of two that implement a cipher is enough."""
    disk = Use("mount", "/", frozenset({"dm_crypt"}), ("fs-ext4", "crypto-aes"))
    assert lost_without(["aesni"], [disk], SNAPSHOT) == ()
    assert lost_without(["aesni", "aes_generic"], [disk], SNAPSHOT) == (disk,)
    assert lost_without(["dm_crypt"], [disk], SNAPSHOT) == (disk,)


@pytest.mark.parametrize(
    ("cipher", "aliases"),
    [
        ("aes-xts-plain64", ("crypto-aes", "crypto-xts")),
        ("aes-cbc-essiv:sha256", ("crypto-aes", "crypto-cbc", "crypto-essiv", "crypto-sha256")),
        ("capi:xts(aes)-plain64", ("crypto-xts", "crypto-aes")),
        ("aes:64-cbc-lmk", ("crypto-aes", "crypto-cbc")),
        ("", ()),
    ],
)
def test_a_cipher_of_dm_crypt_names_what_the_kernel_requests(cipher: str, aliases: tuple[str, ...]) -> None:
    assert cipher_aliases(cipher) == aliases
