"""Keeps `Caller` where the engine's tests import it."""

from tests.unit.host.test_varlink_server import Caller

__all__ = ["Caller"]
