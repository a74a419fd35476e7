"""Which changes of files count as read."""

from __future__ import annotations

import pytest

from kmodd.daemon import file_changes
from kmodd.daemon.file_changes import SETTLED, FileChanges


class Unavailable:
    """A kernel without inotify."""

    def __init__(self) -> None:
        raise OSError


@pytest.fixture(autouse=True)
def no_inotify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_changes, "Watch", Unavailable)


def test_before_the_watch_is_opened_no_file_counts_as_read_since_the_start() -> None:
    """A directory that is watched for a missing file counts as changed, and says nothing of the other files."""
    changes = FileChanges(1000.0)
    assert changes.unread_since == 1000.0
    changes.count_change(1005.0)
    assert changes.unread_since == 1000.0
    assert changes.pop(1005.0 + SETTLED)
    assert changes.unread_since == 1000.0


def test_without_a_watch_files_count_as_read_once_they_were_read_again() -> None:
    changes = FileChanges(1000.0)
    assert changes.open(1005.0) is None
    assert changes.unread_since == 1000.0
    assert changes.pop(1005.0 + SETTLED)
    assert changes.unread_since is None
