"""Have the kernel record who loads modules, for `kmodd verify`: a `TraceInstance` of tracefs with `module_load`.

The kernel goes on while the daemon is stopped, and keeps the events until the next boot or the removal of kmodd.
`kmodd verify` reads them as text. The daemon does not read them.
"""

from __future__ import annotations

import errno
import os

from kmodd.host.request_tracer import INSTANCE, TRACEFS
from kmodd.host.trace_instance import TraceInstance

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_NAME: Final = f"instances/{INSTANCE}-loads"
LOADS: Final = tuple(f"{place}/{_NAME}/trace" for place in TRACEFS)
"""Where the events are, as text, the usual place first."""
_KB: Final = 16
"""KiB for each CPU: some 300 loads; the oldest ones are overwritten."""


def trace_loads(tracefs: tuple[str, ...] = TRACEFS) -> None:
    """Start to record the loads of modules, or let the instance go on that an earlier daemon has left.

    Raises OSError if tracefs is missing or not permitted, ParseError if its format is unknown.
    """
    place = next((place for place in tracefs if os.path.isdir(f"{place}/instances")), None)
    if place is None:
        raise FileNotFoundError(errno.ENOENT, "no tracefs with instances", tracefs[0])
    TraceInstance(f"{place}/{_NAME}", "events/module/module_load", _KB, clock="mono", is_read=False)
