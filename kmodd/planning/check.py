"""What `kmodd check` has found: `Report`."""

from __future__ import annotations

from kmodd.dataclass import dataclass
from kmodd.errors import Where

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from kmodd.planning.benchmarks import Benchmark

    Area = Literal["configuration", "installation", "hardening"]
else:
    Area = str

AREAS: tuple[Area, ...] = ("configuration", "installation", "hardening")


@dataclass(frozen=True, slots=True)
class Result:
    """One thing that was checked."""

    area: Area
    subject: str
    """The module, or a code: of `kmodd lint`, or of the installation."""
    text: str
    is_met: bool = False
    command: str = ""
    """What mends it, for a shell of root; empty: it is met."""
    at: Where | None = None

    @property
    def sentence(self) -> str:
        """Place or module, and text."""
        return f"{self.at or self.subject}: {self.text}"


@dataclass(frozen=True, slots=True)
class Report:
    """All results."""

    results: tuple[Result, ...]
    notes: tuple[tuple[Area, str], ...] = ()
    """What an area was checked by, or that it was not."""
    benchmark: Benchmark | None = None
    """Whose modules were judged; None: no module was."""

    @property
    def findings(self) -> tuple[Result, ...]:
        """The results that are not met."""
        return tuple(result for result in self.results if not result.is_met)
