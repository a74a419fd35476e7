"""`kmodd --version`: the version, and what this installation can do, in the form of `systemctl --version`."""

from __future__ import annotations

import platform
from importlib.util import find_spec

import kmodd

_FEATURES = {
    "ZSTD": ("zstandard", "compression.zstd"),
    "XZ": ("lzma",),
    "ZLIB": ("zlib",),
    "JOURNAL": ("systemd",),
    "UDEV": ("pyudev",),
    "ELFTOOLS": ("elftools",),
    "VARLINK": ("varlink",),
    "INOTIFY": ("inotify_simple",),
}
"""Feature → Python modules of which any provides it."""


def version() -> str:
    """Return two lines: version and interpreter, then each feature with `+`, or `-` if its library is missing."""
    features = " ".join(
        f"{'+' if any(map(_is_there, names)) else '-'}{feature}" for feature, names in _FEATURES.items()
    )
    return f"kmodd {kmodd.__version__} (Python {platform.python_version()})\n{features}"


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of its package
        return False
