"""Build the modules of `fixtures/modules/vm/*.c` for an image's kernel, with Debian's headers unpacked into the cache.

No package is installed for it but a compiler, so it runs as any user. A guest gets one of them by `add_module`, or all
of them with the indexes that the real depmod makes by `add_all`.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Final

from tests import trees
from tests.vm import VmError, say
from tests.vm.image import Image, locked, output, require, run
from tests.vm.payload import REPOSITORY, Payload, copy_into

SOURCES: Final = REPOSITORY / "fixtures" / "modules" / "vm"


def fixture_modules(image: Image) -> dict[str, Path]:
    """Name → compiled module, for every source. A few seconds the first time, then from the cache.

    Raises VmError if there is no compiler, no headers for this kernel, or a source does not compile.
    """
    sources = sorted(SOURCES.glob("*.c"))
    digest = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    folder = image.folder.with_name(f"{image.folder.name}.modules-{digest}".removeprefix("linux-image-"))
    with locked(folder.parent / "lock"):
        if not folder.exists():
            require("gcc", "gcc")
            require("make", "make")
            with tempfile.TemporaryDirectory(prefix="compiling-", dir=folder.parent) as scratch:
                _compile(_headers(image, Path(scratch)), sources, Path(scratch, "modules"))
                Path(scratch, "modules").rename(folder)
    return {source.stem: folder / f"{source.stem}.ko" for source in sources}


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
    modules = fixture_modules(image)
    left_out = "".join(f"-{name}" for name in sorted(without))
    folder = modules["kt_bus"].parent.with_name(f"{modules['kt_bus'].parent.name}.indexes{left_out}")
    source = trees.debian_tree("6.1-amd64")
    if trees.release(source) != image.release:
        raise VmError(f"the module tree is of {trees.release(source)}, the image of {image.release}: apt-get update")
    with locked(folder.parent / "lock"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(prefix="depmod-", dir=folder.parent) as scratch:
                _depmod(
                    trees.module_dir(source), [path for name, path in modules.items() if name not in without], scratch
                )
                Path(scratch, "indexes").rename(folder)
    return folder


def _depmod(source: Path, ours: list[Path], scratch: str) -> None:
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


def _headers(image: Image, scratch: Path) -> Path:
    """Fetch and unpack the kernel's headers; returns the folder to run make in."""
    package = f"linux-headers-{image.release}"
    version = json.loads((image.folder / "recipe.json").read_text())["versions"]
    say(f"fetching {package}")
    text = output(["apt-cache", "show", "--no-all-versions", package], "apt-get update may help")
    names = re.findall(r"linux-(?:headers|kbuild)-\S+", text.partition("\nDepends: ")[2].partition("\n")[0])
    if not names:
        raise VmError(f"{package} depends on no other headers; the image is of {version}")
    run(["apt-get", "download", "-q", package, *names], "download; apt-get update may help", cwd=scratch)
    for archive in scratch.glob("*.deb"):
        run(["dpkg-deb", "-x", str(archive), str(scratch)], "unpack")
    top = scratch / "usr/src" / package
    makefile = top / "Makefile"
    makefile.write_text(makefile.read_text().replace("/usr/src/", f"{scratch}/usr/src/"))
    return top


def _compile(headers: Path, sources: list[Path], folder: Path) -> None:
    folder.mkdir()
    for source in sources:
        shutil.copy2(source, folder)
    (folder / "Kbuild").write_text("".join(f"obj-m += {source.stem}.o\n" for source in sources))
    say("compiling " + ", ".join(source.stem for source in sources))
    run(["make", "-C", str(headers), f"M={folder}", "CC=gcc", "modules"], "compile")
