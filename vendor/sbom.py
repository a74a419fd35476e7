"""Print the bill of materials of kmodd, CycloneDX 1.5 in JSON; `make sbom` writes it to dist/kmodd.cdx.json.

Everything is read from the files that pin it. The same sources give the same bytes, without a time and a serial number.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_NAMES = "kmodd/planning/benchmarks.py"
"""Names of modules that are copied from scap-security-guide."""
_GUIDE = r'"scap-security-guide ([0-9.]+)"'
_SPDX = {"LGPL-2.1+": "LGPL-2.1-or-later"}
"""Names of licences in debian/copyright that SPDX spells otherwise."""


def main() -> None:
    """Print the document."""
    print(json.dumps(document(), indent=2))


def document() -> dict[str, Any]:
    """Return the document: vendored libraries, Debian packages, copied data, and tools of the tests, not installed."""
    version = _match(r'^__version__ = "(.+)"$', "kmodd/__init__.py")
    kmodd = _component("application", "kmodd", version, f"pkg:generic/kmodd@{version}", licence=_licence("*"))
    vendored = [
        _pypi(name, version, hashes, licence=_licence(f"vendor/{name}-*"))
        for name, version, hashes in _pinned("vendor/requirements.txt")
    ]
    control = (ROOT / "debian/control").read_text()
    packages = [
        _component("library", name, "", f"pkg:deb/debian/{name}", scope=scope)
        for field, scope in (("Depends", "required"), ("Suggests", "optional"))
        for name in _packages(control, field)
    ]
    names = _component(
        "data", "scap-security-guide", _match(_GUIDE, _NAMES),
        f"pkg:generic/scap-security-guide@{_match(_GUIDE, _NAMES)}", licence=_licence(_NAMES), scope="required",
    )  # fmt: skip
    tools = [_pypi(*pinned, scope="excluded") for pinned in _pinned("tests/requirements.txt")]
    needed = [each["bom-ref"] for each in [*vendored, *packages]]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": kmodd},
        "components": [*vendored, *packages, names, *tools],
        "dependencies": [{"ref": kmodd["bom-ref"], "dependsOn": needed}],
    }


def _component(
    kind: str,
    name: str,
    version: str,
    purl: str,
    *,
    licence: str = "",
    scope: str = "",
    hashes: list[str] | None = None,
) -> dict[str, Any]:
    parts = {
        "type": kind,
        "bom-ref": purl,
        "name": name,
        "version": version,
        "scope": scope,
        "hashes": [{"alg": "SHA-256", "content": each} for each in hashes or ()],
        "licenses": [{"license": {"id": licence}}] if licence else [],
        "purl": purl,
    }
    return {key: value for key, value in parts.items() if value}


def _pypi(name: str, version: str, hashes: list[str], *, licence: str = "", scope: str = "required") -> dict[str, Any]:
    purl = f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"
    return _component("library", name, version, purl, licence=licence, scope=scope, hashes=hashes)


def _pinned(path: str) -> list[tuple[str, str, list[str]]]:
    """Return name, version and hashes of each package in a file of requirements; one for each file of that version."""
    text = (ROOT / path).read_text().replace("\\\n", " ")
    found = re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)(.*)$", text, re.MULTILINE)
    return [(name, version, _HASH.findall(rest)) for name, version, rest in found]


def _packages(control: str, field: str) -> list[str]:
    """Return the packages that a field of debian/control names, without variables."""
    line = re.search(rf"^{field}: (.*)$", control, re.MULTILINE)
    words = [word.split()[0] for word in line[1].split(",")] if line else []
    return list(dict.fromkeys(word for word in words if not word.startswith("$")))


def _licence(files: str) -> str:
    """Return the licence of these files in debian/copyright, in SPDX's spelling."""
    name = _match(rf"^Files: {re.escape(files)}\n(?:.+\n)*?License: (.+)$", "debian/copyright")
    return _SPDX.get(name, name)


def _match(pattern: str, path: str) -> str:
    found = re.search(pattern, (ROOT / path).read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit(f"{path}: expected a line {pattern}")
    return found[1]


if __name__ == "__main__":
    main()
