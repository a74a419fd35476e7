"""Build the modules of `fixtures/modules` for an image's kernel, in a chroot of its suite, with the kernel's headers.

A guest gets one of `vm/*.c` by `add_module`, or all of them with the indexes that the real depmod makes by `add_all`;
the others, of a module course, are `course_modules`.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from tests import chroots, suites, trees
from tests.vm import VmError, say
from tests.vm.image import Image, locked, run
from tests.vm.payload import REPOSITORY, Payload, copy_into

SOURCES: Final = REPOSITORY / "fixtures" / "modules" / "vm"
COURSE: Final = tuple(SOURCES.parent / f"{name}.c" for name in ("mod1", "mod2", "mod3", "params", "unknown"))

#: Since 7.0, and in later releases of older kernels, the override belongs to every device.
_KBUILD: Final = """\
obj-m := {objects}
ccflags-y += $(if $(shell grep device_set_driver_override $(srctree)/include/linux/device.h),-DKT_DEVICE_OVERRIDE)
"""


def fixture_modules(image: Image) -> dict[str, Path]:
    """Name → compiled module, for every source of `vm`. A few seconds the first time, then from the cache.

    Raises VmError if the suite has no headers for this kernel, or a source does not compile.
    """
    folder = _ours(image)
    return {source.stem: folder / f"{source.stem}.ko" for source in sorted(SOURCES.glob("*.c"))}


def course_modules(image: Image) -> dict[str, Path]:
    """Name → compiled module, for COURSE, like `fixture_modules`."""
    folder = _ours(image)
    return {source.stem: folder / f"{source.stem}.ko" for source in COURSE}


def course_tree(image: Image, folder: Path, place: str = "updates") -> dict[str, bytes]:
    """The image's index files with our modules at `place`, made by kmod's depmod; path in the tree → content."""
    source = trees.suite_tree(image.suite)
    tree = folder / "lib/modules" / image.release
    tree.parent.mkdir(parents=True)
    shutil.copytree(trees.module_dir(source), tree, copy_function=lambda a, b: Path(b).symlink_to(a))
    for index in tree.glob("modules.*"):
        target = index.resolve()
        index.unlink()
        shutil.copy2(target, index)
    files = {f"{place}/{name}.ko": path.read_bytes() for name, path in course_modules(image).items()}
    files[f"{place}/kt_nest.ko"] = fixture_modules(image)["kt_nest"].read_bytes()
    for path, data in files.items():
        (tree / path).parent.mkdir(exist_ok=True)
        (tree / path).write_bytes(data)
    subprocess.run(["/sbin/depmod", "-b", str(folder), image.release], check=True)
    return files | {path.name: path.read_bytes() for path in tree.glob("modules.*") if path.is_file()}


def _ours(image: Image) -> Path:
    sources = [*sorted(SOURCES.glob("*.c")), *COURSE]
    return compiled(image, {source.stem: source.read_bytes() for source in sources})


def compiled(image: Image, sources: Mapping[str, bytes], flags: str = "") -> Path:
    """A folder with NAME.ko for each source; cached. `flags`: further lines of the Kbuild file.

    Raises VmError if the suite has no headers for this kernel, or a source does not compile.
    """
    kbuild = _KBUILD.format(objects=" ".join(f"{name}.o" for name in sources)) + flags
    digest = hashlib.sha256(b"\0".join([kbuild.encode(), *sources.values()])).hexdigest()[:12]
    folder = image.folder.with_name(f"{image.folder.name}.modules-{digest}")
    with locked(folder):
        if not folder.exists():
            with tempfile.TemporaryDirectory(prefix="compiling-", dir=folder.parent) as scratch:
                try:
                    _compile(image, sources, kbuild, Path(scratch))
                except suites.Unavailable as error:
                    raise VmError(str(error)) from error
                Path(scratch, "modules").rename(folder)
    return folder


def add_module(payload: Payload, image: Image, module: Path, aliases: tuple[str, ...]) -> None:
    """Put a module without dependencies into a guest, as if depmod had found it with these alias patterns.

    Only for guests without kmod: depmod would take too long in the guest, so the text indexes get a line each and
    the binary ones, which kmod reads, go.
    """
    tree = f"/usr/lib/modules/{image.release}"
    name = module.stem
    payload.write(f"{tree}/updates/{name}.ko", module.read_bytes())
    lines = {"modules.dep": f"updates/{name}.ko:\n", "modules.alias": "".join(f"alias {a} {name}\n" for a in aliases)}
    for index, line in lines.items():
        changed = payload.folder / f"{tree}/{index}".lstrip("/")
        source = changed if changed.exists() else image.modules / index
        payload.write(f"{tree}/{index}", source.read_text() + line)
        payload.remove.append(f"{tree}/{index}.bin")


def add_all(payload: Payload, image: Image, *, without: Collection[str] = ()) -> None:
    """Put every module of ours into a guest, with indexes of depmod. `without`: files that no index names."""
    tree = f"/usr/lib/modules/{image.release}"
    for name, path in fixture_modules(image).items():
        payload.write(f"{tree}/updates/{name}.ko", path.read_bytes())
    copy_into(payload, indexes(image, without=without), tree)


def indexes(image: Image, *, without: Collection[str] = ()) -> Path:
    """A folder with depmod's `modules.*` of the image's kernel and our modules but those of `without`; cached.

    Raises VmError if the tree at hand is of another kernel than the image.
    """
    left_out = "".join(f"-{name}" for name in sorted(without))
    modules = [path for name, path in fixture_modules(image).items() if name not in without]
    return indexes_with(image, modules, left_out)


def indexes_with(image: Image, modules: Sequence[Path], name: str = "") -> Path:
    """A folder with depmod's `modules.*` of the image's kernel and these modules, which are of one folder; cached.

    `name`: of the choice, if not all of the folder. Raises VmError as `indexes` does.
    """
    home = modules[0].parent
    folder = home.with_name(f"{home.name}.indexes{name}")
    source = trees.suite_tree(image.suite)
    if trees.release(source) != image.release:
        raise VmError(f"the module tree is of {trees.release(source)}, the image of {image.release}: apt-get update")
    with locked(folder):
        if not folder.exists():
            with tempfile.TemporaryDirectory(prefix="depmod-", dir=folder.parent) as scratch:
                _depmod(trees.module_dir(source), modules, scratch)
                Path(scratch, "indexes").rename(folder)
    return folder


def _depmod(source: Path, ours: Sequence[Path], scratch: str) -> None:
    """Run depmod over a copy of a module tree made of links; its indexes go to `scratch`/indexes."""
    tree, made = Path(scratch, "lib/modules", source.name), Path(scratch, "indexes")
    tree.parent.mkdir(parents=True)
    shutil.copytree(source, tree, copy_function=lambda a, b: Path(b).symlink_to(a))
    for index in tree.glob("modules.*"):
        target = index.resolve()
        index.unlink()
        shutil.copy2(target, index)
    (tree / "updates").mkdir()
    for module in ours:
        shutil.copy2(module, tree / "updates")
    say("depmod with modules of our own")
    run(["depmod", "-b", scratch, source.name], "depmod")
    made.mkdir()
    for index in tree.glob("modules.*"):
        shutil.copy2(index, made)


def _compile(image: Image, sources: Mapping[str, bytes], kbuild: str, scratch: Path) -> None:
    """Compile in `scratch`/modules."""
    headers, work = scratch / "headers", scratch / "modules"
    headers.mkdir()
    work.mkdir()
    name = f"linux-headers-{image.release}"
    say(f"fetching {name}")
    for each in (name, *trees.needs(name, image.suite, r"linux-(?:headers|kbuild)-")):
        trees.unpack(trees.newest(each, image.suite, ""), headers)
    top = headers / "usr/src" / name
    makefile = top / "Makefile"
    makefile.write_text(makefile.read_text().replace("/usr/src/", "/headers/usr/src/"))
    for module, text in sources.items():
        (work / f"{module}.c").write_bytes(text)
    (work / "Kbuild").write_text(kbuild)
    say("compiling " + ", ".join(sources))
    make = f"make -C /headers/usr/src/{name} M=/modules CC=gcc KBUILD_MODPOST_WARN=1 modules"
    owner = work.stat()
    script = f"{make}; chown -R {owner.st_uid}:{owner.st_gid} /modules"
    status, output = chroots.run(chroots.chroot(image.suite), script, {headers: "/headers", work: "/modules"})
    if status != 0:
        raise VmError(f"compile failed: {make} gave {status}\n{output}")
