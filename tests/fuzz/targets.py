"""Every parser and codec of bytes that others choose, with its documented errors and its corpus: `TARGETS`.

Whatever the bytes, the result is a value or one of the errors. A case that once failed stays in the corpus.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
from collections.abc import Callable
from dataclasses import dataclass

import zstandard

from kmodd.config import cmdline, depmod_d, kmodd_conf, modprobe_d, modules_conf, modules_load_d, policy_d
from kmodd.config.modprobe_d import ConfFile
from kmodd.errors import KmoddError
from kmodd.host import process_reader
from kmodd.index import bin_reader, fnmatch_regex, text_files
from kmodd.kernel import device_recording, ftrace, kmsg, proc_modules, uevent
from kmodd.loader import protocol
from kmodd.modfile import decompress, depmod_cache, depmod_graph, elf, initrd, modinfo, signature, unified_image
from kmodd.text import decode
from tests.elf_maker import Maker
from tests.initrds import MICROCODE, PACKERS, archive, tree, unified
from tests.pages import EXEC_FORMAT, FORMAT, HEADER_PAGE, page, request_event, written

LIMIT = 1 << 20
"""Bytes that a compressed image may have here, so that a bomb ends soon."""

_LAYOUT = ftrace.parse_header_page(HEADER_PAGE, "little")
_REQUEST = ftrace.parse_request_format(FORMAT, "little")
_EXEC = ftrace.parse_exec_format(EXEC_FORMAT, "little")


@dataclass(frozen=True)
class Target:
    """One parser."""

    parse: Callable[[bytes], object]
    corpus: tuple[bytes, ...]
    errors: tuple[type[Exception], ...] = (KmoddError,)
    """The documented ones."""

    def run(self, data: bytes) -> None:
        """Parse. Raises what is not documented."""
        with contextlib.suppress(*self.errors):
            self.parse(data)


def _conf(parse: Callable[[list[ConfFile]], object]) -> Callable[[bytes], object]:
    return lambda data: parse([ConfFile("/etc/x.conf", decode(data))])


def _trace_page(data: bytes) -> None:
    for event in ftrace.parse_page(data, _LAYOUT).events:
        ftrace.module_requested(event, _REQUEST)
        ftrace.executed(event, _EXEC)


def _index(data: bytes) -> None:
    index = bin_reader.BinIndex(data, "x.bin")
    index.get("e1000e")
    index.wildcard("pci:v00008086d000010D3sv00sd00bc02sc00i00")


def _image(data: bytes) -> None:
    elf.facts(elf.Image(data))
    modinfo.info(data)


def _unpacked(name: decompress.Compression) -> Callable[[bytes], object]:
    return lambda data: decompress.unpack(io.BytesIO(data), name, LIMIT)


_RULES = b"deny origin=request uid=!0 # x\nallow module=usb* subsystem=usb device=/devices/* phase=boot\n"
_MODPROBE = b'alias a* b\noptions a b="c d"\nsoftdep a pre: b post: c\nblacklist x\ninstall y /bin/true \\\n z\n'
_ELF = Maker().add(b".modinfo", b"license=GPL\0alias=pci:v*\0depends=a,b\0").symbols((b"x", 16, 0, 0)).image()
_PLAIN = b"module" * 20
_INDEX = bin_reader.build([("pci:v*", "e1000e", 0), ("pci:v00008086*", "igb", 1)], preorder=False)
_INITRD = archive(*tree("6.1", ["a", "fs/b"]))

TARGETS: dict[str, Target] = {
    "uevent": Target(uevent.parse, (b"add@/devices/x\0ACTION=add\0MODALIAS=usb:v1\0SUBSYSTEM=usb\0SEQNUM=12\0",)),
    "kmsg": Target(kmsg.parse, (b"6,1234,5678,-,caller=T1;usb 1-1: x\n SUBSYSTEM=usb\n DEVICE=+usb:1-1\n",)),
    "proc_modules": Target(
        lambda data: proc_modules.parse_modules(decode(data)),
        (b"a 16384 1 b,c, Live 0xffffffffc0000000 (OE)\nb 1 0 - Loading 0x0\n",),
    ),
    "trace_page": Target(_trace_page, (page(900, written(900, [ftrace.TraceEvent(900, request_event(7, b"fs-x"))])),)),
    "trace_format": Target(lambda data: ftrace.parse_request_format(decode(data), "little"), (FORMAT.encode(),)),
    "modprobe.d": Target(_conf(modprobe_d.parse), (_MODPROBE,)),
    "modules.conf": Target(
        lambda data: modules_conf.convert(ConfFile("/etc/modules.conf", decode(data))),
        (b"alias eth0 e100\npre-install a modprobe b\nif -f /x\npath=/y\nendif\n",),
    ),
    "depmod.d": Target(
        _conf(lambda files: depmod_d.parse(files, "6.1.0")), (b"search updates built-in\noverride a 6.* extra\n",)
    ),
    "modules-load.d": Target(_conf(lambda files: modules_load_d.parse(files, cmdline.EMPTY)), (b"# x\nloop\n;y\n",)),
    "kmodd.conf": Target(_conf(kmodd_conf.parse), (b"[Kmodd]\nPolicy=enforce\nLanes=4\nStuckAfterSec=1min\n",)),
    "policy.d": Target(_conf(policy_d.parse), (_RULES,)),
    "command_line": Target(lambda data: cmdline.parse(decode(data)), (b'a.b="c d" modprobe.blacklist=x,y kmodd=off',)),
    "pattern": Target(lambda data: fnmatch_regex.compiled.__wrapped__(decode(data)), (b"pci:v[0-9]*[!a]?",)),
    "modules.dep": Target(lambda data: text_files.dep_lines(data, "x"), (b"kernel/a.ko: kernel/b.ko\n",)),
    "modules.alias": Target(lambda data: text_files.alias_lines(data, "x"), (b"# x\nalias pci:v* e1000e\n",)),
    "modules.devname": Target(lambda data: text_files.devnames(data, "x"), (b"fuse fuse c10:229\n",)),
    "modules.builtin.modinfo": Target(lambda data: text_files.builtin_modinfo(data, "x"), (b"a.license=GPL\0",)),
    "modules.symvers": Target(
        lambda data: depmod_graph.symvers(data, "x", b""), (b"0x12345678\tprintk\tvmlinux\tEXPORT_SYMBOL\n",)
    ),
    "index.bin": Target(_index, (_INDEX,)),
    "module": Target(_image, (_ELF,)),
    "signature": Target(signature.parse, (_ELF + b"~Module signature appended~\n",)),
    "depmod_cache": Target(lambda data: depmod_cache.load(data, "/x"), (depmod_cache.dump("/x", []),)),
    "gzip": Target(_unpacked("gzip"), (gzip.compress(_PLAIN),), (OSError,)),
    "xz": Target(_unpacked("xz"), (lzma.compress(_PLAIN),), (OSError,)),
    "zstd": Target(_unpacked("zstd"), (zstandard.ZstdCompressor().compress(_PLAIN),), (OSError,)),
    "initrd": Target(
        lambda data: initrd.read_initrd(io.BytesIO(data), LIMIT),
        (MICROCODE + _INITRD, *(pack(_INITRD) for pack in PACKERS.values())),
    ),
    "unified_image": Target(
        lambda data: unified_image.read_image(io.BytesIO(data), LIMIT),
        (
            unified((".linux", b"MZ"), (".initrd", MICROCODE + PACKERS["zstd"](_INITRD))),
            unified((".initrd", _INITRD), (".profile", b"ID=a"), (".profile", b"ID=b"), (".initrd", b"")),
        ),
    ),
    "device_recording": Target(
        lambda data: [device.event for device in device_recording.parse(decode(data), "x")[0]],
        (b"P: /devices/a\nE: MODALIAS=pci:v1\nA: modalias=pci:v1\\n\nL: driver=../b\nH: c=00\n\nP: /devices/b\n",),
    ),
    "loader_request": Target(
        protocol.decode_request, (b"insmod\0/lib/modules/a.ko\0x=1\0a", b"probe\0pci\x000000:00:01.0"), (ValueError,)
    ),
    "loader_reply": Target(
        protocol.decode_reply, (b"0\0kernel\x0012\0", b"0\0kernel\x0012\0\0\0\x000a1b"), (ValueError,)
    ),
    "command_request": Target(
        protocol.decode_command, (b"install\0a\0/etc/modprobe.d/x.conf\x003\0/etc/x\0b",), (ValueError,)
    ),
    "requester": Target(process_reader.unpack, (b"1\0sh\0/bin/sh\x000\0\0/x\0\0no\x000",), ()),
}  # fmt: skip
