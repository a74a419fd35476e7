"""Situations for depmod: module directories that are odd in one way each, and the command lines to run in them.

They cover what kmod's own tests are about (order, search, override, external and excluded directories, loops,
compressed and broken files, symbols, options), re-made out of our own modules.
"""

from __future__ import annotations

import lzma
import os
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

RELEASE = "6.1.0-case"


@dataclass(frozen=True, slots=True)
class Place:
    """A root, its module directory, and where compiled modules are taken from."""

    root: Path
    compiled: Path

    @property
    def directory(self) -> Path:
        return self.root / "lib" / "modules" / RELEASE

    def put(self, name: str, *where: str) -> None:
        """Copy a compiled module to each of these paths below the module directory."""
        for path in where:
            self.write(path, (self.compiled / f"{name}.ko").read_bytes())

    def write(self, path: str, data: str | bytes) -> None:
        """Write a file below the module directory, or an absolute one below the root."""
        place = self.root / path[1:] if path.startswith("/") else self.directory / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data)

    def build_files(self) -> None:
        """Files that the kernel's build puts into every module directory."""
        self.write("modules.order", "kernel/mod3.ko\nkernel/mod1.ko\nkernel/nothere.ko\nkernel/params.ko\n")
        self.write("modules.builtin", "kernel/fs/ext9/ext9.ko\nkernel/lib/a-b.ko\n")
        self.write("modules.builtin.modinfo", "ext9.alias=fs-ext9\0ext9.license=GPL\0a_b.alias=a-b-[c-d]\0")


Build = Callable[[Place], None]


def course(place: Place) -> None:
    """mod1, mod2 and mod3, as in a course, beside others."""
    place.build_files()
    place.put("mod1", "kernel/mod1.ko")
    place.put("mod2", "extra/mod2.ko")
    place.put("mod3", "kernel/mod3.ko")
    place.put("params", "kernel/params.ko")
    place.put("bare", "extra/bare.ko")


def aliases(place: Place) -> None:
    """Brackets, dashes, doubles, device nodes."""
    course(place)
    place.put("aliases-many", "kernel/drivers/aliases-many.ko")
    place.put("node_unnumbered", "kernel/node_unnumbered.ko")


def unlisted(place: Place) -> None:
    """Many modules that modules.order does not know: their order is that of a hash table."""
    place.build_files()
    for number in range(60):
        place.put("bare", f"kernel/d{number % 7}/name{number * number}-{number}.ko")
    place.put("mod2", "kernel/z/mod2.ko")
    place.put("mod1", "kernel/a/mod1.ko")


def no_build_files(place: Place) -> None:
    """modules.order and its like are missing."""
    unlisted(place)
    for path in place.directory.glob("modules.*"):
        path.unlink()


def odd_order(place: Place) -> None:
    """modules.order names modules twice, and ends without an LF."""
    course(place)
    place.write("modules.order", "kernel/mod1.ko\nkernel/mod3.ko\n\nkernel/mod1.ko\nkernel/params.ko")


def twice_in_order(place: Place) -> None:
    """modules.order names modules twice; and an empty line."""
    course(place)
    place.write("modules.order", "kernel/mod1.ko\nkernel/params.ko\n\nkernel/mod3.ko\nkernel/mod1.ko\nextra/bare.ko\n")


def empty_order(place: Place) -> None:
    """modules.order is there and says nothing."""
    course(place)
    place.write("modules.order", "")


def odd_builtins(place: Place) -> None:
    """Lines of modules.builtin and strings of modules.builtin.modinfo that are none."""
    course(place)
    place.write("modules.builtin", "kernel/a.ko\n\n/abs/b.ko\n9/c.ko\nkernel/a.ko\nkernel/d-e.ko.xz\nkernel/last.ko")
    texts = "a.alias=x-[a-b] a.alias=y-[z b.alias=x_[a-b] b.alias= nodot c.d.alias=q a.alias=same b.alias=same"
    place.write("modules.builtin.modinfo", texts.replace(" ", "\0") + "\0a.b\0f.alias=n\0z.alias=zz\0e.alias=cut")


def duplicates(place: Place) -> None:
    """One name in several directories."""
    course(place)
    place.put("params", "updates/mod1.ko", "kernel/sub/mod1.ko", "updates/deep/er/bare.ko", "zzz/mod2.ko")
    place.put("bare", "updates/a/mod3.ko", "updates/b/mod3.ko", "weak-updates/mod3.ko", "aaa/params.ko", "zz/params.ko")


def names(place: Place) -> None:
    """File names that are nearly those of modules."""
    course(place)
    place.put("bare", "kernel/da-sh_ed.ko", "kernel/two.dots.ko", "kernel/x.ko.bak", "kernel/y.koo", "kernel/CAPS.KO")
    place.put("mod2", "kernel/folder.ko/inner.ko", "kernel/build/not.ko", "source/not2.ko", "kernel/.hidden/seen.ko")
    place.write("kernel/text", "no module\n")


def links(place: Place) -> None:
    """A module and a folder of modules linked into the tree, and a link to nothing."""
    course(place)
    place.write("/outside/bare2.ko", (place.compiled / "bare.ko").read_bytes())
    place.write("/outside/folder/mod4.ko", (place.compiled / "mod2.ko").read_bytes())
    (place.directory / "extra" / "linked.ko").symlink_to(place.root / "outside" / "bare2.ko")
    (place.directory / "extra" / "folder").symlink_to(place.root / "outside" / "folder")


def dead_links(place: Place) -> None:
    """Dangling links, links to themselves, and special files."""
    course(place)
    for path in ("dead.ko", "kernel/dead", "kernel/sub/dead.ko"):
        (place.directory / path).parent.mkdir(exist_ok=True)
        (place.directory / path).symlink_to("nowhere")
    (place.directory / "kernel" / "self.ko").symlink_to("self.ko")
    os.mkfifo(place.directory / "kernel" / "pipe.ko")
    os.mkfifo(place.directory / "kernel" / "pipe")


def cycle(place: Place) -> None:
    """Two modules that need each other."""
    course(place)
    place.put("cycle_a", "extra/cycle_a.ko")
    place.put("cycle_b", "extra/cycle_b.ko")


def unknown(place: Place) -> None:
    """Symbols without an exporter; -E, -F and their files, good and bad."""
    course(place)
    place.put("unknown", "extra/unknown.ko")
    for name in ("Module.symvers", "System.map"):
        place.write(f"/{name}", (place.compiled / name).read_bytes())
    lines = (place.compiled / "Module.symvers").read_text().splitlines(keepends=True)
    bent = [line.replace("0x", "0x1", 1) if "\tmodule_layout\t" in line else line for line in lines]
    bad = "0xzz\tbad\tvmlinux\tE\n0x1z bad vmlinux E\n0x7\tlast\tvmlinux\n\nshort\n0x1\tother\tdrivers/x\n"
    place.write("/bent.symvers", "".join(bent) + bad)
    place.write("/odd.map", "ffffffff8 r __ksymtab__printk\nnoblank\n00 t\n0 r __ksymtab_module_layout\n0 r other\n")


def compressed(place: Place) -> None:
    """xz as kernels make it, and in two streams; zstd goes by its own test."""
    course(place)
    plain = (place.compiled / "mod1.ko").read_bytes()
    place.write("kernel/mod1.ko.xz", lzma.compress(plain, check=lzma.CHECK_CRC32))
    (place.directory / "kernel" / "mod1.ko").unlink()
    half = len(plain) // 2
    place.write("kernel/streams.ko.xz", lzma.compress(plain[:half]) + lzma.compress(plain[half:]))
    place.write("kernel/notpacked.ko.xz", (place.compiled / "bare.ko").read_bytes())
    place.write("kernel/packed.ko", lzma.compress((place.compiled / "params.ko").read_bytes()))


def packed_by_zstd(place: Place) -> None:
    """zstd as kernels make it."""
    import zstandard

    course(place)
    plain = (place.compiled / "mod1.ko").read_bytes()
    (place.directory / "kernel" / "mod1.ko").unlink()
    place.write("kernel/mod1.ko.zst", zstandard.ZstdCompressor().compress(plain))


def odd_zstd(place: Place) -> None:
    """zstd without the size of what is in it, and in two frames."""
    import zstandard

    packed_by_zstd(place)
    plain = (place.compiled / "mod1.ko").read_bytes()
    pack = zstandard.ZstdCompressor().compress
    place.write("kernel/sizeless.ko.zst", zstandard.ZstdCompressor(write_content_size=False).compress(plain))
    place.write("kernel/frames.ko.zst", pack(plain[:5000]) + pack(plain[5000:]))


def cut_zstd(place: Place) -> None:
    """zstd that is cut off."""
    import zstandard

    packed_by_zstd(place)
    place.write(
        "kernel/cut.ko.zst", zstandard.ZstdCompressor().compress((place.compiled / "mod1.ko").read_bytes())[:500]
    )


def damaged_packs(place: Place) -> None:
    """Compressed files that are cut off, bent, or have something behind them."""
    course(place)
    packed = lzma.compress((place.compiled / "mod1.ko").read_bytes())
    place.write("kernel/p_cut.ko.xz", packed[:700])
    place.write("kernel/p_garbage.ko.xz", packed + b"garbage...")
    place.write("kernel/p_pad3.ko.xz", packed + bytes(3))
    place.write("kernel/p_pad4.ko.xz", packed + bytes(4))
    for at in (7, 500, len(packed) - 9):
        place.write(f"kernel/p_bent{at}.ko.xz", packed[:at] + bytes((packed[at] ^ 1,)) + packed[at + 1 :])


def broken(place: Place) -> None:
    """Files that are no modules."""
    course(place)
    plain = (place.compiled / "mod1.ko").read_bytes()
    place.write("kernel/b_empty.ko", b"")
    place.write("kernel/b_five.ko", b"\x7fELF\x02")
    place.write("kernel/b_six.ko", b"\x7fELF\x02\x01")
    place.write("kernel/b_text.ko", "no module, but a text of some length to be read\n" * 9)
    place.write("kernel/b_zeroes.ko", bytes(4096))
    place.write("kernel/b_cut.ko", plain[: len(plain) // 2])
    place.write("kernel/b_class.ko", plain[:4] + b"\x07" + plain[5:])
    place.write("kernel/b_order.ko", plain[:5] + b"\x07" + plain[6:])


def stripped(place: Place) -> None:
    """Modules without debug information, and without symbols."""
    course(place)
    for option, name in (("--strip-debug", "s_debug"), ("--strip-unneeded", "s_unneeded"), ("--strip-all", "s_all")):
        target = place.directory / "kernel" / f"{name}.ko"
        subprocess.run(["strip", option, "-o", target, place.compiled / "mod2.ko"], check=True)
    for section, name in (("__versions", "s_versions"), (".modinfo", "s_modinfo"), (".symtab", "s_symtab")):
        target = place.directory / "kernel" / f"{name}.ko"
        subprocess.run(["objcopy", "--rename-section", f"{section}=.x", place.compiled / "mod2.ko", target], check=True)


def versions(place: Place) -> None:
    """__versions of a wrong size; of the right size, with a name that fills its field and goes on behind it."""
    course(place)
    plain = place.compiled / "mod2.ko"
    for name, table in (("v_short", b"x" * 63), ("v_endless", b"x" * 64), ("v_one", bytes(64)), ("v_none", b"")):
        place.write("/versions", table)
        target = place.directory / "kernel" / f"{name}.ko"
        command = ("objcopy", "--update-section", f"__versions={place.root}/versions", plain, target)
        subprocess.run(command, check=True)


def _configured(text: str, *more: tuple[str, str]) -> Build:
    def build(place: Place) -> None:
        duplicates(place)
        place.write("/c/a.conf", text.replace("ROOT", str(place.root)))
        for path, other in more:
            place.write(path, other.replace("ROOT", str(place.root)))
        place.write("/outer/mod3.ko", (place.compiled / "mod1.ko").read_bytes())
        place.write("/outer/only.ko", (place.compiled / "mod2.ko").read_bytes())
        place.write("/outer2/mod3.ko", (place.compiled / "mod2.ko").read_bytes())

    build.__doc__ = f"depmod.d: {text!r}"
    return build


CONFIGS = {
    "search one": "search weak-updates\n",
    "search order": "search weak-updates updates built-in\n",
    "search built-in first": "search built-in weak-updates updates zzz zz\n",
    "search built-in last": "search zzz aaa\nsearch updates/b\nsearch built-in\n",
    "search deep": "search updates/b updates kernel/sub built-in\n",
    "search only built-in": "search built-in\n",
    "override": "override mod3 * updates/a\noverride mod1 6.1.* kernel/sub\n",
    "override regular": "override mod3 ^6\\\\.1\\\\.0-(case|x)$ weak-updates\n",
    "override other kernel": "override mod3 ^5 weak-updates\noverride params [[ zz\noverride mod1 4\n",
    "override last wins": "override mod3 * updates/a\noverride mod3 * kernel\noverride mod3 * updates/b\n",
    "exclude": "exclude weak-updates deep\nexclude b bare.ko\n",
    "external": "external * ROOT/outer\n",
    "external first": "search external updates built-in\nexternal * ROOT/outer\nexternal * ROOT/outer2\n",
    "external last": "search updates built-in external\nexternal * ROOT/outer\nexternal 6 ROOT/outer2\n",
    "external missing": "external * ROOT/nowhere\nexternal * ROOT/outer\nexternal 7 ROOT/outer2\n",
    "external twice": "search updates external built-in external\nexternal * ROOT/outer2\nexternal * ROOT/outer\n",
    "bad lines": "frob x\nsearch\noverride a b\nexternal x\n # indented\n\t\n#ok\\\nsearch x\ninclude y\n",
    "lines without effect": "make_map_files n\ninclude /x\nexclude\n",
    "wrapped": "search \\\n  weak-updates\\\n \\\nupdates built\\-in\nexcl\\ude b # c\nfrob\\\nnicate\n",
    "no newline": "search zzz built-in",
}
MERGED = _configured(
    "search updates built-in\n",
    ("/c/b.conf", "exclude weak-updates\n"),
    ("/d/a.conf", "search weak-updates\n"),
    ("/d/b.conf", "frob\n"),
    ("/d/.hidden.conf", "frob\n"),
    ("/d/z.other", "frob\n"),
    ("/d/e.conf/x", ""),
    ("/single", "override mod3 * kernel\nfrob\n"),
)


@dataclass(frozen=True, slots=True)
class Case:
    """A situation and its command lines; `{root}`, `{directory}` and VERSION are replaced, -b is prepended."""

    name: str
    build: Build
    commands: tuple[str, ...] = ("VERSION", "-a -w -v VERSION", "-n VERSION")


def _case(name: str, build: Build, commands: str) -> Case:
    """A case with one command a line."""
    return Case(name, build, tuple(line.strip() for line in commands.strip().splitlines()))


CASES = (
    *(
        Case(build.__name__, build)
        for build in (
            *(course, aliases, unlisted, no_build_files, odd_order, twice_in_order, empty_order, odd_builtins),
            *(duplicates, names, links, dead_links, cycle, compressed, packed_by_zstd, odd_zstd, cut_zstd),
            *(damaged_packs, broken, stripped, versions),
        )
    ),
    *(_case(name, _configured(text), "-C {root}/c VERSION") for name, text in CONFIGS.items()),
    _case(
        "merged",
        MERGED,
        """
        -C {root}/c -C {root}/d VERSION
        -C {root}/d -C {root}/c VERSION
        -C {root}/single -C {root}/c VERSION
        -C {root}/c/a.conf VERSION
        -C {root}/none VERSION
        -C {root}/d/z.other -C {root}/c VERSION
        """,
    ),
    _case(
        "unknown",
        unknown,
        """
        -e VERSION
        -e -E {root}/Module.symvers VERSION
        -e -F {root}/System.map VERSION
        -F {root}/System.map VERSION
        -E {root}/bent.symvers VERSION
        -e -E {root}/bent.symvers VERSION
        -e -F {root}/odd.map VERSION
        -E {root}/none VERSION
        -F {root}/none VERSION
        -v -n -P _ VERSION
        -e -P m -F {root}/System.map VERSION
        -P xy VERSION
        -e -E {root}/Module.symvers -F {root}/none VERSION
        """,
    ),
    _case(
        "files",
        duplicates,
        """
        VERSION {directory}/kernel/mod1.ko {directory}/extra/mod2.ko
        VERSION {directory}/extra/mod2.ko
        -n VERSION {directory}/kernel/mod1.ko {directory}/extra/mod2.ko
        VERSION {root}/none.ko
        VERSION relative.ko
        VERSION {root}/lib
        -a VERSION {directory}/kernel/mod1.ko
        VERSION {directory}/kernel/mod1.ko {directory}/kernel/mod1.ko
        VERSION {directory}/../VERSION/kernel/mod3.ko
        VERSION {directory}/kernel/mod1.ko {directory}/updates/mod1.ko
        VERSION {directory}/modules.order
        """,
    ),
    _case(
        "command line",
        course,
        """
        -h
        -z
        --nosuch
        -b
        --basedir
        notaversion
        6
        6.x
        9.9
        9.9.9-none
        -n 9.9
        --map VERSION
        -u -q -r VERSION
        --quiet --unresolved-error VERSION
        --show --basedir={root} VERSION
        --dry VERSION
        -nb{root} VERSION
        VERSION -n
        -- VERSION
        --sym x
        -A -n VERSION
        -A 9.9
        -A VERSION
        """,
    ),
)
"""Every situation with its command lines."""


def build(case: Case, root: Path, compiled: Path) -> Place:
    """Make the root of a case."""
    place = Place(root, compiled)
    place.directory.mkdir(parents=True)
    case.build(place)
    return place


def reset(place: Place, before: dict[str, bytes]) -> None:
    """Restore the files of the module directory."""
    for path in place.directory.glob("modules.*"):
        if path.name not in before:
            path.unlink()
    for name, data in before.items():
        (place.directory / name).write_bytes(data)


def words(command: str, place: Place) -> list[str]:
    """The words of a command line."""
    text = f"-b {{root}} {command}".replace("VERSION", RELEASE)
    return shlex.split(text.replace("{root}", str(place.root)).replace("{directory}", str(place.directory)))
