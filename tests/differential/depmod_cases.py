"""Situations for depmod: module directories that are odd in one way each, and the command lines to run in them.

They cover what kmod's own tests are about (order, search, override, external and excluded directories, loops, compressed
and broken files, symbols, options), re-made out of our own modules.
"""

from __future__ import annotations

import lzma
import os
import shutil
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
        """What the kernel's build leaves in every module directory."""
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
    modinfo = "a.alias=x-[a-b]\0a.alias=y-[z\0b.alias=x_[a-b]\0b.alias=\0nodot\0c.d.alias=q\0a.alias=same\0b.alias=same\0"
    place.write("modules.builtin.modinfo", modinfo + "e.alias=cut")


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


def cycle(place: Place) -> None:
    """Two modules that need each other."""
    course(place)
    place.put("cycle_a", "extra/cycle_a.ko")
    place.put("cycle_b", "extra/cycle_b.ko")


def unknown(place: Place) -> None:
    """Symbols that nobody has; -E, -F and their files, good and bad."""
    course(place)
    place.put("unknown", "extra/unknown.ko")
    for name in ("Module.symvers", "System.map"):
        place.write(f"/{name}", (place.compiled / name).read_bytes())
    lines = (place.compiled / "Module.symvers").read_text().splitlines(keepends=True)
    bent = [line.replace("0x", "0x1", 1) if "\tmodule_layout\t" in line else line for line in lines]
    place.write("/bent.symvers", "".join(bent) + "0xzz\tbad\tvmlinux\tE\n0x1z bad vmlinux E\n0x7\tlast\tvmlinux\n\nshort\n0x1\tother\tdrivers/x\n")
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
    "override regular": r"override mod3 ^6\\.1\\.0-(case|x)$ weak-updates" "\n",
    "override other kernel": "override mod3 ^5 weak-updates\noverride params [[ zz\noverride mod1 4\n",
    "override last wins": "override mod3 * updates/a\noverride mod3 * kernel\noverride mod3 * updates/b\n",
    "exclude": "exclude weak-updates deep\nexclude b bare.ko\n",
    "external": "external * ROOT/outer\n",
    "external first": "search external updates built-in\nexternal * ROOT/outer\nexternal * ROOT/outer2\n",
    "external last": "search updates built-in external\nexternal * ROOT/outer\nexternal 6 ROOT/outer2\nexternal * ROOT/no\n",
    "external twice": "search updates external built-in external\nexternal * ROOT/outer2\nexternal * ROOT/outer\n",
    "bad lines": "frob x\nsearch\noverride a b\nexternal x\n # indented\n\t\n#ok\\\nsearch x\ninclude y\nmake_map_files n\n",
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


def one_less(place: Place) -> None:
    """A module that cannot be read by anybody."""
    course(place)
    (place.directory / "kernel" / "loop.ko").symlink_to("loop.ko")


@dataclass(frozen=True, slots=True)
class Case:
    """A situation and what is run in it: `{root}` and `{directory}` stand for the paths, the release is added."""

    name: str
    build: Build
    commands: tuple[str, ...] = ("-b {root} VERSION", "-a -w -v -b {root} VERSION", "-n -b {root} VERSION")


CASES = (
    *(Case(build.__name__, build) for build in (
        course, aliases, unlisted, no_build_files, odd_order, twice_in_order, empty_order, odd_builtins, duplicates, names,
        links, cycle, compressed, broken, stripped,
    )),
    *(Case(name, _configured(text), ("-b {root} -C {root}/c VERSION",)) for name, text in CONFIGS.items()),
    Case("merged", MERGED, tuple(
        f"-b {{root}} {options} VERSION" for options in (
            "-C {root}/c -C {root}/d", "-C {root}/d -C {root}/c", "-C {root}/single -C {root}/c", "-C {root}/c/a.conf",
            "-C {root}/none", "-C {root}/d/z.other -C {root}/c",
        )
    )),
    Case("unknown", unknown, tuple(
        f"-b {{root}} {options} VERSION" for options in (
            "-e", "-e -E {root}/Module.symvers", "-e -F {root}/System.map", "-F {root}/System.map", "-E {root}/bent.symvers",
            "-e -E {root}/bent.symvers", "-e -F {root}/odd.map", "-E {root}/none", "-F {root}/none", "-v -n -P _",
            "-e -P m -F {root}/System.map", "-P xy", "-e -E {root}/Module.symvers -F {root}/none",
        )
    )),
    Case("files", duplicates, tuple(
        f"-b {{root}} {words}" for words in (
            "VERSION {directory}/kernel/mod1.ko {directory}/extra/mod2.ko", "VERSION {directory}/extra/mod2.ko",
            "-n VERSION {directory}/kernel/mod1.ko {directory}/extra/mod2.ko", "VERSION {root}/none.ko",
            "VERSION relative.ko", "VERSION {root}/lib", "-a VERSION {directory}/kernel/mod1.ko",
            "VERSION {directory}/kernel/mod1.ko {directory}/kernel/mod1.ko", "VERSION {directory}/../VERSION/kernel/mod3.ko",
            "VERSION {directory}/kernel/mod1.ko {directory}/updates/mod1.ko", "VERSION {directory}/modules.order",
        )
    )),
    Case("command line", course, (
        "-h", "-z", "--nosuch", "-b", "--basedir", "-b {root} notaversion", "-b {root} 6", "-b {root} 6.x",
        "-b {root} 9.9", "-b {root} 9.9.9-none", "-n -b {root} 9.9", "--map -b {root} VERSION", "-u -q -r -b {root} VERSION",
        "--quiet --unresolved-error -b {root} VERSION", "--show --basedir={root} VERSION", "--dry -b {root} VERSION",
        "-nb{root} VERSION", "-b {root} VERSION -n", "-b {root} -- VERSION", "--sym x",
        "-A -n -b {root} VERSION", "-A -b {root} 9.9",
    )),
)  # fmt: skip
"""Every situation with its command lines."""


def build(case: Case, root: Path, compiled: Path) -> Place:
    """Make the root of a case."""
    place = Place(root, compiled)
    place.directory.mkdir(parents=True)
    case.build(place)
    return place


def reset(place: Place, before: dict[str, bytes]) -> None:
    """Bring the files of the module directory back to what they were."""
    for path in place.directory.glob("modules.*"):
        if path.name not in before:
            path.unlink()
    for name, data in before.items():
        (place.directory / name).write_bytes(data)


def words(command: str, place: Place) -> list[str]:
    """The words of a command line."""
    import shlex

    text = command.replace("VERSION", RELEASE)
    return shlex.split(text.replace("{root}", str(place.root)).replace("{directory}", str(place.directory)))


def free(root: Path) -> None:
    """Remove a root."""
    shutil.rmtree(root)
    assert not os.path.lexists(root)
