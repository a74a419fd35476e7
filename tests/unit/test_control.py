"""Keeps `Caller` where the engine's tests import it."""

from tests.varlink_caller import Caller

__all__ = ["Caller"]
