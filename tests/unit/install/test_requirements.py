"""The hashes of the test tools: each tool that pyproject.toml pins is in tests/requirements.txt, with its version."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.installation import ROOT


def pins() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return list(project["optional-dependencies"]["test"])


def hashed() -> dict[str, list[str]]:
    """`NAME==VERSION` → hashes."""
    text = (ROOT / "tests/requirements.txt").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {line.split()[0]: re.findall(r"--hash=sha256:([0-9a-f]{64})(?=\s|$)", line) for line in lines}


@pytest.mark.parametrize("pin", pins())
def test_each_tool_has_a_hash_for_its_version(pin: str) -> None:
    assert re.fullmatch(r"[a-z0-9-]+==[0-9.]+", pin)
    assert hashed()[pin]


def test_what_tools_need_is_pinned_by_hash_too() -> None:
    """pip refuses to install anything else (--require-hashes)."""
    found = hashed()
    assert len(found) > len(pins()), "the control: they need other packages"
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", name) and hashes for name, hashes in found.items())
