"""What this machine does not come up without: the disk of /, and its only network."""

from __future__ import annotations

from kmodd.config.modprobe_d import Config
from kmodd.index.catalog import Catalog, Snapshot
from kmodd.index.layer import Layer
from kmodd.planning.essentials import Use, vital_without

SNAPSHOT = Snapshot(Catalog([Layer("/lib/modules/6.1.0", {"modules.dep": b"e1000.ko:\nigb.ko:\n"}.get)]), Config())
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
