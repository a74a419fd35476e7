"""Build the modules of `tests/vm/modules/*.c` for an image's kernel, with Debian's headers unpacked into the cache.

No package is installed for it but a compiler, so it runs as any user.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Final

from tests.vm import VmError, say
from tests.vm.image import Image, output, require, run
from tests.vm.payload import Payload

SOURCES: Final = Path(__file__).resolve().parent / "modules"


def fixture_modules(image: Image) -> dict[str, Path]:
    """Name → compiled module, for every source. A few seconds the first time, then from the cache.

    Raises VmError if there is no compiler, no headers for this kernel, or a source does not compile.
    """
    sources = sorted(SOURCES.glob("*.c"))
    digest = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    folder = image.folder.with_name(f"{image.folder.name}.modules-{digest}".removeprefix("linux-image-"))
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
