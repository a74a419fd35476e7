"""bench/results.json: the results of the last `make bench` and `make bench-vm`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import readme
from bench.rows import Row

FILE = Path(__file__).parent / "results.json"


def save(found: Mapping[str, object]) -> None:
    """Replace these keys, keep all others."""
    FILE.write_text(json.dumps({**_load(), **found}, indent=1, ensure_ascii=False) + "\n")


def save_vm(facts: Mapping[str, object], rows: Sequence[Row]) -> None:
    """Replace rows of guests by name, keep all others, and update bench/README.md."""
    new = [dataclasses.asdict(row) for row in rows]
    names = {row["what"] for row in new}
    old = [row for row in _load().get("vm", {}).get("rows", ()) if row["what"] not in names]
    save({"vm": {**facts, "rows": [*old, *new]}})
    readme.put([*old, *new])


def _load() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    return found
