"""`kmodd run`: the daemon."""

from __future__ import annotations

import argparse
import os
import sys

from kmodd.daemon import Daemon, Settings
from kmodd.errors import KmoddError, NoTree
from kmodd.host.control import CONTROL_SOCKET
from kmodd.host.journal import open_journal
from kmodd.host.notify import Notify
from kmodd.host.tree import Tree
from kmodd.outcome import DEBUG, INFO


def main(argv: list[str]) -> int:
    """Serve until told to stop: exit 0. 1: something it needs is not there; 2: wrong usage; 3: no module tree."""
    parser = argparse.ArgumentParser(
        "kmodd run",
        description="Listen to the kernel, load what its devices ask for, say why. `journalctl -t kmodd` shows it.",
    )
    parser.add_argument("--dry-run", action="store_true", help="resolve and tell everything, load nothing")
    parser.add_argument("--root", default="", metavar="DIR", help="prefix of every path that is read")
    parser.add_argument("--kernel", metavar="RELEASE", help="default: the running one")
    parser.add_argument("--verbose", "-v", action="store_true", help="in a terminal: show debug records too")
    parser.add_argument("--socket", default=CONTROL_SOCKET, metavar="PATH", help="control socket (default %(default)s)")
    parser.add_argument(
        "--here", metavar="FIXTURE",
        help="for a look on any machine: where modules cannot be loaded, say why and go on as --dry-run, "
        "with FIXTURE/lib/modules where there is no module tree",
    )  # fmt: skip
    options = parser.parse_args(argv)
    notify = Notify()
    try:
        tree = Tree(root=options.root, release=options.kernel)
        if tree.guessed:
            print(f"kmodd run: kernel {tree.release}, the only one below {options.root}", file=sys.stderr)
        dry_run = options.dry_run
        if options.here is not None:
            tree, dry_run = _here(tree, options.here, dry_run)
        journal = open_journal(under_systemd=notify.under_systemd, lowest=DEBUG if options.verbose else INFO)
        settings = Settings(
            dry_run=dry_run,
            spawn_loaders=not notify.under_systemd,
            control_path=_control_path(options.socket),
            run=not (dry_run or options.root) and os.geteuid() == 0 and options.socket == CONTROL_SOCKET,
        )
        daemon = Daemon(tree, journal, notify, settings)
    except (KmoddError, OSError, ImportError) as error:
        print(f"kmodd run: {error}", file=sys.stderr)
        return 1
    daemon.run()
    return 0


def _control_path(path: str) -> str:
    """The default is root's; anybody else gets one in his own runtime directory."""
    if path != CONTROL_SOCKET or os.geteuid() == 0:
        return path
    own = os.environ.get("XDG_RUNTIME_DIR")
    if not own:
        import tempfile  # only here: as much as all of kmodd's own files, and a service never comes here

        own = tempfile.mkdtemp(prefix="kmodd-")
    return os.path.join(own, "io.kmodd")


def _here(tree: Tree, fixture: str, dry_run: bool) -> tuple[Tree, bool]:
    """What of a real run this machine allows: the tree to use, and whether it stays dry. Says why in one line."""
    why = []
    if not os.path.exists(f"{tree.root}/proc/modules"):
        why.append("this kernel cannot load modules")
    if os.geteuid() != 0:
        why.append("only root may load modules")
    try:
        tree.check()
    except NoTree as none:
        releases = os.listdir(f"{fixture}/lib/modules")
        tree = Tree(root=tree.root, release=releases[0], module_dir=fixture)
        why.append(f"{none}; matching against {tree.directory}")
    if why:
        print(f"kmodd run: {'; '.join(why)}: going on as --dry-run", flush=True)
    return tree, dry_run or bool(why)
