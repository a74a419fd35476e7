"""Benchmark of scale: steps, processor time and memory of the engine on simulated machines of any size.

    python3 -m bench.scale [NAME...]

Prints figures and exponents, writes `scale.json`, and draws `scale.svg`. Each point is measured in a process of its
own. A step is a line of `kmodd/` that is executed; processor time includes the simulated machine; memory is what lines
of `kmodd/` have allocated and kept at the end. With an exponent of 1, the cost is proportional to the number; `last` is
the exponent between the two largest sizes.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path

from bench import plot
from tests.simulation.scale import WORKLOADS, Workload, exponent, memory, seconds, steps

FIGURES = Path(__file__).parent / "scale.json"
PICTURE = Path(__file__).parent / "scale.svg"
KINDS: dict[str, Callable[[Workload, int], float]] = {"steps": steps, "seconds": seconds, "bytes": memory}

Curve = dict[str, list[float]]
"""Costs by their kind, and the sizes."""


def main() -> None:
    """Measure, print, save and draw; with names, these workloads only."""
    curves = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    for workload in WORKLOADS:
        if workload.name in (sys.argv[1:] or [each.name for each in WORKLOADS]):
            curves[workload.name] = measure(workload)
            print(text_of(workload.name, curves[workload.name]), flush=True)
    FIGURES.write_text(json.dumps(curves, indent=1) + "\n")
    PICTURE.write_text(picture({each.name: curves[each.name] for each in WORKLOADS if each.name in curves}))


def measure(workload: Workload) -> Curve:
    """Measure all sizes of a workload."""
    curve: Curve = {"sizes": list(map(float, workload.sizes))}
    for kind in KINDS:
        curve[kind] = [_in_child(workload.name, size, kind) for size in workload.sizes]
    return curve


def _in_child(name: str, size: int, kind: str) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_point, (name, size, kind))


def _point(name: str, size: int, kind: str) -> float:
    workload = next(each for each in WORKLOADS if each.name == name)
    return KINDS[kind](workload, size)


def text_of(name: str, curve: Curve) -> str:
    """Return a line for each kind of cost."""
    lines = []
    for kind in KINDS:
        sizes, costs = curve["sizes"], curve[kind]
        points = ", ".join(f"{cost:,.6g} at {size:,.0f}" for size, cost in zip(sizes, costs, strict=True))
        slopes = f"exponent {exponent(sizes, costs):5.2f}, last {exponent(sizes[-2:], costs[-2:]):5.2f}"
        lines.append(f"{name:<11}{kind:<8} {slopes}: {points}")
    return "\n".join(lines)


def picture(curves: dict[str, Curve]) -> str:
    """Return the picture: for each workload, steps and bytes."""
    panels = []
    for name, curve in curves.items():
        lines = []
        for kind, unit in (("steps", "lines of kmodd executed"), ("bytes", "bytes of kmodd at the end")):
            slope = exponent(curve["sizes"], curve[kind])
            points = list(zip(curve["sizes"], curve[kind], strict=True))
            lines.append(plot.Line(f"{unit}: exponent {slope:.2f}".replace("-0.00", "0.00"), points))
        panels.append(plot.Panel(f"By {name}", name, "", lines))
    return plot.picture(panels)


if __name__ == "__main__":
    main()
