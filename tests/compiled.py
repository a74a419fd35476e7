"""The modules of fixtures/modules, compiled against Debian's kernel headers; fetched and compiled once, then cached.

Nothing is installed for it but gcc, make and openssl: the headers are downloaded with apt and unpacked into a scratch
folder, in the version that belongs to the kernel of `trees.debian_tree`. It works as any user.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests import suites, trees

SOURCES = Path(__file__).resolve().parent.parent / "fixtures" / "modules"
FLAVOUR, SUITE = "6.1-amd64", "bookworm"


@functools.cache
def modules() -> Path:
    """A folder with `<name>.ko` for each source, `signed.ko`, and the headers' `Module.symvers` and `System.map`.

    signed.ko is mod1 with a PKCS#7 signature. System.map is made of Module.symvers: headers have none.
    Raises suites.Unavailable.
    """
    release = trees.release(trees.debian_tree(FLAVOUR))
    sources = sorted(path for path in SOURCES.iterdir() if path.suffix == ".c" or path.name == "Kbuild")
    recipe = [Path(__file__), *sources]
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in recipe)).hexdigest()[:12]

    def fill(root: Path) -> None:
        with tempfile.TemporaryDirectory(dir=root.parent) as scratch:
            headers = _headers(release, Path(scratch))
            work = Path(scratch, "modules")
            work.mkdir()
            for source in sources:
                shutil.copy2(source, work)
            _make(["make", "-C", str(headers), f"M={work}", "CC=gcc", "KBUILD_MODPOST_WARN=1", "modules"])
            _sign(headers, work)
            for module in work.glob("*.ko"):
                shutil.move(module, root)
            symvers = (headers / "Module.symvers").read_text()
            (root / "Module.symvers").write_text(symvers)
            names = [line.split("\t")[1] for line in symvers.splitlines() if "\tvmlinux\t" in line]
            (root / "System.map").write_text("".join(f"ffffffff81000000 r __ksymtab_{name}\n" for name in names))

    return trees.cached(f"compiled-{release}-{digest}", fill)


def _headers(release: str, scratch: Path) -> Path:
    """Fetch and unpack the kernel's headers; the folder to run make in."""
    name = f"linux-headers-{release}"
    for each in (name, *trees.needs(name, SUITE, r"linux-(?:headers|kbuild)-")):
        trees.unpack(trees.newest(each, SUITE, ""), scratch)
    top = scratch / "usr" / "src" / name
    makefile = top / "Makefile"
    makefile.write_text(makefile.read_text().replace("/usr/src/", f"{scratch}/usr/src/"))
    return top


def _sign(headers: Path, work: Path) -> None:
    key, certificate = work / "key.pem", work / "certificate.pem"
    name = "/O=kmodd/CN=kmodd test key/emailAddress=test@example.org"
    request = f"openssl req -new -x509 -newkey rsa:2048 -nodes -days 36500 -keyout {key} -out {certificate} -subj"
    _make([*request.split(), name])
    program = headers / "scripts" / "sign-file"
    _make([str(program), "sha256", str(key), str(certificate), str(work / "mod1.ko"), str(work / "signed.ko")])


def _make(command: list[str]) -> None:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except FileNotFoundError:
        raise suites.Unavailable(f"{command[0]} is not installed") from None
    if done.returncode:
        raise suites.Unavailable(f"{' '.join(command)}:\n{done.stdout}")
