"""The results of `kmodd check` as text, JSON, SARIF and JUnit."""

from __future__ import annotations

import json
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

from kmodd.cli.terminal import Colour
from kmodd.planning.check import AREAS, Report, Result
from kmodd.text import count_of, encode, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kmodd.planning.benchmarks import Benchmark


def text_of(report: Report) -> list[tuple[str, Colour]]:
    """Return the lines of the report, each with its colour on a terminal."""
    lines: list[tuple[str, Colour]] = []
    for area in AREAS:
        own = [result for result in report.results if result.area == area]
        left = sum(not result.is_met for result in own)
        notes = [note for name, note in report.notes if name == area]
        head = "; ".join([*notes, count_of(left, "finding") if left else "no finding"] if own or not notes else notes)
        lines.append((printable(f"{area}: {head}"), "bold"))
        for result in own:
            lines.append((printable(f"  {result.sentence}"), "green" if result.is_met else "red"))
            if result.command:
                lines.append((printable(f"      Run: {result.command}"), ""))
            elif not result.is_met:
                lines.append(("      No command mends this", ""))
    return lines


def json_of(report: Report) -> str:
    """Return an object a line for each result."""
    notes = [json.dumps({"area": area, "note": _clean(note)}) + "\n" for area, note in report.notes]
    if report.benchmark:
        notes.append(json.dumps({"area": "hardening", "note": "benchmark", **_benchmark(report.benchmark)}) + "\n")
    return "".join(notes) + "".join(
        json.dumps({
            "area": each.area, "subject": _clean(each.subject), "met": each.is_met, "text": _clean(each.text),
            "file": _clean(each.at.file) if each.at else None, "line": (each.at.line or None) if each.at else None,
            "command": _clean(each.command) or None,
        }) + "\n"
        for each in report.results
    )  # fmt: skip


def _benchmark(benchmark: Benchmark) -> dict[str, object]:
    """Return title, source, version and licence of a benchmark, and the number of its modules, as JSON values."""
    return {
        "title": _clean(benchmark.title),
        "source": _clean(benchmark.source) or None,
        "version": _clean(benchmark.version) or None,
        "licence": benchmark.licence or None,
        "modules": len(benchmark.modules),
    }


def sarif_of(report: Report, version: str) -> str:
    """Return the findings as a SARIF 2.1.0 log (OASIS). version: kmodd's."""
    rules = sorted({_rule(result) for result in report.findings})
    run = {
        "tool": {"driver": {"name": "kmodd", "version": version, "rules": [{"id": rule} for rule in rules]}},
        "results": [_sarif_result(result) for result in report.findings],
        "properties": {
            "notes": [_clean(f"{area}: {note}") for area, note in report.notes],
            "benchmark": _benchmark(report.benchmark) if report.benchmark else None,
        },
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}) + "\n"


_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def _rule(result: Result) -> str:
    return f"{result.area}/{result.subject}"


def _sarif_result(result: Result) -> dict[str, object]:
    found: dict[str, object] = {
        "ruleId": _rule(result),
        "level": "error",
        "message": {"text": _clean(f"{result.sentence}. Run: {result.command or 'no command mends this'}")},
    }
    if result.at:
        region = {"region": {"startLine": result.at.line}} if result.at.line else {}
        found["locations"] = [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": f"file://{quote(encode(result.at.file))}"},
                    **region,
                }
            }
        ]
    return found


def junit_of(report: Report) -> str:
    """Return the results as JUnit's XML: a suite for each area, a failure for each finding."""
    parts = ['<?xml version="1.0" encoding="UTF-8"?>\n<testsuites>\n']
    for area in AREAS:
        own = [result for result in report.results if result.area == area]
        left = sum(not result.is_met for result in own)
        parts.append(f'  <testsuite name="{area}" tests="{len(own)}" failures="{left}">\n')
        notes = [quoteattr(_clean(note)) for name, note in report.notes if name == area]
        if notes:
            properties = "".join(f'<property name="note" value={note}/>' for note in notes)
            parts.append(f"    <properties>{properties}</properties>\n")
        for result in own:
            name = quoteattr(_clean(str(result.at) if result.at else result.subject))
            head = f'    <testcase classname="kmodd.check.{area}" name={name}'
            if result.is_met:
                parts.append(f"{head}/>\n")
            else:
                message = quoteattr(_clean(result.text))
                command = escape(_clean(result.command))
                parts.append(f"{head}><failure message={message}>{command}</failure></testcase>\n")
        parts.append("  </testsuite>\n")
    return "".join([*parts, "</testsuites>\n"])


def _clean(text: str) -> str:
    """Return a text for XML and JSON: control characters are escaped, bytes that are not UTF-8 become `?`."""
    return printable(text).encode("utf-8", "replace").decode()
