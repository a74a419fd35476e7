"""bench/results.json: the results of the last `make bench` and `make bench-vm`."""

from __future__ import annotations

import dataclasses
import datetime
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


def save_vm(suite: str, kernel: str, rows: Sequence[Row]) -> None:
    """Replace rows of a suite's guests by name, keep all others, and update bench/README.md."""
    facts = {"suite": suite, "kernel": kernel, "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
    new = [{**dataclasses.asdict(row), **facts} for row in rows]
    names = {(suite, row.what) for row in rows}
    old = [row for row in _load().get("vm", ()) if (row["suite"], row["what"]) not in names]
    save({"vm": [*old, *new]})
    readme.put([*old, *new])


def _load() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    return found
