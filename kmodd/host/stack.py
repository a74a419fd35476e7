"""placeholder until the merge"""
from __future__ import annotations
class StackQuestion:
    def __init__(self, pid: int, spawner: object) -> None: raise OSError(2, "none")
    def fileno(self) -> int: return -1
    def answer(self) -> tuple[str, ...] | None: return ()
    def close(self) -> None: pass
