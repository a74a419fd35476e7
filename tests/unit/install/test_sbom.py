"""The bill of materials names all that kmodd imports, vendors and depends on, and each tool of the tests."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.installation import ROOT

PACKAGES = {
    "elftools": "python3-pyelftools",
    "inotify_simple": "inotify_simple",
    "pyudev": "python3-pyudev",
    "systemd": "python3-systemd",
    "varlink": "varlink",
    "zstandard": "python3-zstandard",
}
"""Component of each module that kmodd imports. A new dependency is added here, and where `make sbom` reads it."""


def printed() -> bytes:
    return subprocess.run([sys.executable, "-I", ROOT / "vendor/sbom.py"], capture_output=True, check=True).stdout


@pytest.fixture(scope="module")
def components() -> dict[str, Any]:
    document = json.loads(printed())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.5")
    return {each["name"]: each for each in document["components"]}


def imported() -> set[str]:
    """Return the modules that kmodd imports and that are neither its own nor the standard library's."""
    names = set()
    for path in (ROOT / "kmodd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"kmodd"}


def test_each_module_that_kmodd_imports_is_a_component(components: dict[str, Any]) -> None:
    not_installed = {"_typeshed", "compression"}  # mypy's; of the standard library of Python 3.14
    assert imported() - not_installed == set(PACKAGES)
    assert set(PACKAGES.values()) <= set(components)


def test_each_vendored_wheel_is_a_component_with_its_hash_and_licence(components: dict[str, Any]) -> None:
    wheels = sorted((ROOT / "vendor").glob("*.whl"))
    assert wheels
    for wheel in wheels:
        name, version = wheel.name.split("-")[:2]
        each = components[name]
        assert (each["version"], each["scope"]) == (version, "required")
        assert each["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}]
        assert each["licenses"][0]["license"]["id"] in ("Apache-2.0", "BSD-2-Clause")


def test_each_debian_package_that_is_depended_on_is_a_component(components: dict[str, Any]) -> None:
    fields = re.findall(r"^(?:Depends|Suggests): (.*)$", (ROOT / "debian/control").read_text(), re.MULTILINE)
    names = {word.split()[0] for field in fields for word in field.split(",") if "$" not in word}
    assert "kmod" in names
    found = {name for name, each in components.items() if each["purl"].startswith("pkg:deb/")}
    assert found == names


def test_the_tools_of_the_tests_are_components_that_are_not_installed(components: dict[str, Any]) -> None:
    pinned = re.findall(r"^([\w-]+)==(\S+)", (ROOT / "tests/requirements.txt").read_text(), re.MULTILINE)
    tools = {(name, each["version"]) for name, each in components.items() if each["scope"] == "excluded"}
    assert tools == set(pinned)
    assert all(components[name]["hashes"] for name, _ in pinned)


def test_the_same_sources_give_the_same_bytes() -> None:
    assert printed() == printed()


def test_the_source_of_the_names_of_benchmarks_is_a_component_with_its_licence(components: dict[str, Any]) -> None:
    source = components["scap-security-guide"]
    assert (source["type"], source["version"]) == ("data", "0.1.65")
    assert source["licenses"] == [{"license": {"id": "BSD-3-Clause"}}]
