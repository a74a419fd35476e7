"""Plays a scenario on a simulated machine."""

from __future__ import annotations

import errno

from tests.simulation.kernel import OTHERS
from tests.simulation.rest import settle
from tests.simulation.scenarios import DEVICES, MODULES, Scenario, Seen
from tests.simulation.simulation import Simulation


def simulate(scenario: Scenario, release: str) -> list[Seen]:
    """Play a scenario with a kernel of `release`. Returns what each stage has brought. Raises Violation."""
    sim = Simulation()
    sim.play((f"kernel {'.'.join(release.split('.')[:2])}", *MODULES))
    sim.play(f"alias platform:{name}* {name}" for name in DEVICES)
    player = Player(sim)
    return [player.stage(stage.acts) for stage in scenario.stages()]


class Player:
    """Plays acts, and notes what they bring."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self._plugged = 0
        self._others: list[str] = []

    def stage(self, acts: tuple[str, ...]) -> Seen:
        """Play the acts of a stage until nothing goes on but what hangs."""
        sim = self._sim
        for act in acts:
            self._do(act)
        settle(sim)
        others = [f"{module} other {_word(code)}" for pid, module, code in sim.kernel.returned if pid == OTHERS]
        records = [word for each in sim.records if (word := word_of(dict(each.fields)))]
        seen = Seen(list(sim.kernel.begun), records + others)
        for each in (sim.kernel.returned, sim.kernel.begun, sim.records):
            each.clear()
        return seen

    def _do(self, act: str) -> None:
        sim = self._sim
        match act.split(" "):
            case ["plug", name]:
                self._plugged += 1
                sim.do(f"plug {name}.{self._plugged} platform:{name}")
            case ["unplug" | "trigger" as verb, name]:
                for device in [each for each in sim.kernel.devices if each.startswith(f"{name}.")]:
                    sim.do(f"{verb} {device}")
            case ["let-go", name]:
                sim.kernel.change_init(name, ends="returns")
            case ["quick", name]:
                sim.do(f"config options {name} seconds=0")
                sim.kernel.change_init(name, ends="returns")
            case ["refuse", name, word]:
                sim.do(f"config options {name} errno={getattr(errno, word, 0)}")
                sim.kernel.change_init(name, errno=getattr(errno, word, 0))
            case ["other-load", name]:
                sim.kernel.load(name, OTHERS, sim.now)
            case ["quiet", name, *override]:
                self._plugged += 1
                sim.kernel.devices[f"{name}.{self._plugged}"] = f"platform:{name}"
                if override:
                    sim.do(f"override {name}.{self._plugged}")
            case ["overflow", name]:
                self._do(f"plug {name}")
                sim.do("lose")
            case ["small-buffer"]:
                pass
            case ["start"]:
                sim.play(("start", "round"))
            case ["begin" | "finish", _]:
                sim.play(("round", act, "round"))
            case _:
                sim.do(act)


def word_of(fields: dict[str, str]) -> str:
    """The fields of a record as scenarios have them; empty: it is about no module or device of theirs."""
    module = fields.get("KMODD_MODULE") or fields.get("KMODD_ALIAS", "").removeprefix("platform:")
    if "KMODD_RESULT" not in fields or not module.startswith(("kt_", "net-pf-")) or module == "kt_bus":
        return ""
    code = f" {_word(int(fields['ERRNO']))}" if fields.get("ERRNO") else ""
    return f"{module} {fields['KMODD_RESULT']} {fields['KMODD_SOURCE']}{code}"


def _word(code: int) -> str:
    return errno.errorcode[code] if code else "ok"
