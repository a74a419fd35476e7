"""Names that the kernel gives to request_module(): every prefix that a Debian tree can answer.

Each name with the module that must come first; `kmodd lookup` and the real `modprobe -R` must agree on all of them.
Names that no Debian module answers stand at the end: both must say so.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kmodd.host.tree import Tree
from kmodd.index.catalog import lookup_or_nothing
from tests import trees
from tests.differential.kmod_peer import KmodPeer, kmod_30

pytestmark = [pytest.mark.differential, pytest.mark.timeout(900)]

ANSWERS = """
net-pf-5 appletalk          net-pf-15 af_key            net-pf-38 af_alg            net-pf-2-proto-132 sctp
net-pf-16-proto-12 nfnetlink                            net-pf-16-proto-4-type-2 inet_diag
net-pf-16-proto-4-type-2-6 tcp_diag                     net-pf-16-proto-16-family-nl80211 cfg80211
net-pf-24-proto-1 l2tp_ppp  can-proto-1 can_raw         bt-proto-3 rfcomm           rds_tcp rds_tcp
vport-type-4 vport_vxlan    net-l2tp-type-5 l2tp_eth    ppp-compress-21 bsd_comp    ppp-compress-26 ppp_deflate
pppoatm pppoatm             br2684 br2684               mpoa mpoa                   clip clip
lec lec                     bridge bridge               8021q 8021q                 nhc_dest nhc_dest
9p-virtio 9pnet_virtio      tcp_bbr tcp_bbr             tcp-ulp-tls tls             xfrm-type-2-50 esp4
xfrm-offload-2-50 esp4_offload                          rtnl-link-dummy dummy       rtnl-lwt-MPLS mpls_iptunnel
netdev-tunl0 ipip           netdev-sit0 sit             netdev-gre0 ip_gre
team-mode-loadbalance team_mode_loadbalance             mdio:00000000000001111100000100111010 microchip
ipt_REJECT ipt_REJECT       ip6t_rt ip6t_rt             xt_conntrack xt_conntrack   ebt_arp ebt_arp
arpt_mangle arpt_mangle     iptable_nat iptable_nat     ip6table_filter ip6table_filter
ebtable_nat ebtable_nat     nft-chain-2-nat nft_chain_nat                           nft-expr-nat nft_nat
nft-expr-2-fib nft_fib_ipv4 nft-obj-2 nft_quota         nf-flowtable-2 nf_flow_table_inet
nfnetlink-subsys-1 nf_conntrack_netlink                 nfct-helper-ftp nf_conntrack_ftp
nf-nat nf_nat               ip_conntrack_netlink nf_conntrack_netlink
nf_conntrack_bridge nf_conntrack_bridge                 br_netfilter br_netfilter   nf-logger-2-0 nf_log_syslog
ip_set_hash:ip ip_set_hash_ip                           ip_vs_rr ip_vs_rr           ip_vs_pe_sip ip_vs_pe_sip
ts_kmp ts_kmp               sch_fq sch_fq               cls_flower cls_flower       act_mirred act_mirred
ematch-kind-1 em_cmp        ife-meta-skbmark act_meta_mark                          fs-ext4 ext4
fs-iso9660 isofs            iso9660 isofs               fs-nfs4 nfs                 nls_cp437 nls_cp437
quota_v1 quota_v1           quota_v2 quota_v2           nfsv4 nfsv4
nfs-layouttype4-1 nfs_layout_nfsv41_files               rpc-auth-6 auth_rpcgss
rpc-auth-gss-390003 rpcsec_gss_krb5                     rpcrdma rpcrdma             svcrdma rpcrdma
ocfs2_stack_o2cb ocfs2_stack_o2cb                       block-major-7-0 loop        block-major-2-0 floppy
block-major-9-0 md_mod      bfq-iosched bfq             dm-crypt dm_crypt           dm-raid dm_raid
dm-log-userspace dm_log_userspace                       dm-cache-smq dm_cache_smq   md-level-5 raid456
md-cluster md_cluster       md-personality-4 raid456    scsi_dh_alua scsi_dh_alua   nvme-tcp nvme_tcp
nvmet-transport-3 nvmet_tcp target_core_file target_core_file
iscsi_target_mod iscsi_target_mod                       tcm_loop tcm_loop           redboot redboot
cfi_cmdset_0002 cfi_cmdset_0002                         zpool-zsmalloc zsmalloc     char-major-10-229 fuse
char-major-10-235 autofs4   char-major-108-0 ppp_generic                            char-major-116-0 snd
char-major-21-0 sg          char-major-4-64 8250        tty-ldisc-3 ppp_async       tty-ldisc-1 slip
snd-seq snd_seq             snd-timer snd_timer         sound-service-0-0 snd_mixer_oss
snd-usb-audio snd_usb_audio cx88-alsa cx88_alsa         cx88-dvb cx88_dvb           ir-kbd-i2c ir_kbd_i2c
ir-nec-decoder ir_nec_decoder                           i2c:tda9840 tda9840         spi:spidev spidev
platform:rtc_cmos rtc_cmos  crypto-aes aesni_intel      crypto-sha256-all padlock_sha
cryptomgr cryptomgr         algif-hash algif_hash       symbol:drm_mode_copy drm
cpufreq_powersave cpufreq_powersave                     governor_simpleondemand governor_simpleondemand
w1-family-0x28 w1_therm     usbfunc:ecm usb_f_ecm       rdma-link-rxe rdma_rxe      rdma-client-uverbs ib_uverbs
rdma-netlink-subsys-5 ib_core                           intel_th_gth intel_th_gth   iwlmvm iwlmvm
pcmcia pcmcia               acpi_ipmi acpi_ipmi
"""

NOBODY = """
net-pf-4 net-pf-2-proto-132-type-1 dsa_tag:dsa dsa_tag:id-1 block-major-2 block-major-7 char-major-10-30 char-major-108
binfmt-464c fb0 parport_lowlevel scsi_hostadapter snd-card-0 snd-seq-client-64 sound-slot-0 vfio-reset:foo
ulpi:v0451p1508 eth0 dm-exstore-x nf-nat-2 9p-none
"""

BY_ALIAS = {
    "eth0": "e1000e",
    "char-major-10-30": "floppy",
    "net-pf-4": "appletalk",
    "binfmt-464c": "binfmt_misc",
    "block-major-2": "floppy",
    "parport_lowlevel": "parport_pc",
    "scsi_hostadapter": "uas",
    "snd-card-0": "snd-pcsp",
    "fb0": "dummy",
}
"""Names that are there for the administrator to alias, as kerneld's users did."""


def pairs() -> list[tuple[str, str]]:
    words = ANSWERS.split()
    return list(zip(words[::2], words[1::2], strict=True))


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> KmodPeer:
    return kmod_30(tmp_path_factory.mktemp("peer"))


@pytest.mark.parametrize("flavour", ["6.1-amd64", "6.12-amd64"])
def test_what_the_kernel_asks_for(peer: KmodPeer, flavour: str, tmp_path: Path) -> None:
    with trees.may_be_away(flavour):
        root = trees.debian_tree(flavour)
    (tmp_path / "none.conf").write_text("")
    tree = Tree(str(root), trees.release(root), config_paths=[str(tmp_path / "none.conf")])
    snapshot = tree.snapshot()
    wanted = [*pairs(), *((name, "") for name in NOBODY.split())]
    assert len(wanted) > 150
    for name, first in wanted:
        modules = [str(hit.module) for hit in lookup_or_nothing(name, snapshot)]
        assert (modules[:1] or [""])[0] == first, name
        base = ["-d", str(root), "-S", trees.release(root), "-C", str(tmp_path / "none.conf")]
        assert peer.run([*base, "-q", "-R", name]).out.decode().split() == modules, name


def test_by_alias_of_the_administrator(peer: KmodPeer, tmp_path: Path) -> None:
    root = trees.debian_tree("6.1-amd64")
    conf = tmp_path / "a.conf"
    conf.write_text("".join(f"alias {name} {module}\n" for name, module in BY_ALIAS.items()))
    tree = Tree(module_dir=str(root), release=trees.release(root), config_paths=[str(conf)])
    snapshot = tree.snapshot()
    for name, module in BY_ALIAS.items():
        modules = [str(hit.module) for hit in lookup_or_nothing(name, snapshot)]
        assert modules == [module.replace("-", "_")]
        base = ["-d", str(root), "-S", trees.release(root), "-C", str(conf)]
        assert peer.run([*base, "-R", name]).out.decode().split() == modules
