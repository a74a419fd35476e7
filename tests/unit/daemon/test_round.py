"""The order of a round, with the kernel's own inotify."""

from __future__ import annotations

import select
from pathlib import Path

from kmodd.daemon.file_changes import FileChanges
from kmodd.daemon.round import RoundActions, go_round
from kmodd.daemon.startup import Startup
from kmodd.engine.events import Event, FilesChanged
from tests.world import World


def test_a_file_that_appears_while_files_are_read_is_noticed(world: World, tmp_path: Path) -> None:
    """`mkdir DIR; mv FILE DIR/`: DIR is read before FILE is in it. It is watched by then, so that FILE is an event."""
    wanted = tmp_path / "firmware"
    changes = FileChanges(0.0)
    watch = changes.open(0.0)
    assert watch is not None
    changes.watch_directories((str(wanted),))
    assert changes.pop(1.0)
    seen: list[list[str]] = []

    def handle(event: Event) -> None:
        if isinstance(event, FilesChanged):
            seen.append([path.name for path in wanted.iterdir()])
            (wanted / "file").touch()

    def watch_files() -> None:
        changes.watch_directories((str(wanted),))

    actions = RoundActions(
        handle=handle,
        pop_changes=changes.pop,
        watch_files=watch_files,
        report_ready=lambda: None,
        open_trace=lambda: False,
        open_watch=lambda _: None,
        settle=lambda: None,
    )
    wanted.mkdir()
    changes.on_readable(2.0)
    go_round(world.engine, Startup(), actions, 3.0)
    assert seen == [[]]
    assert select.select([watch], [], [], 10)[0], "the file was not noticed"
    changes.on_readable(4.0)
    go_round(world.engine, Startup(), actions, 5.0)
    changes.close()
    assert seen == [[], ["file"]]
