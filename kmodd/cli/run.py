"""`kmodd run`: the daemon."""

from __future__ import annotations

import gc
import os
import sys

from kmodd.cli.options import OptionError, Options
from kmodd.errors import KmoddError, NoTree
from kmodd.host.paths import CONTROL_SOCKET
from kmodd.host.sd_notify import Notify
from kmodd.loader.spawner import Spawner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kmodd.host.tree import Tree

USAGE = f"""usage: kmodd run [OPTION…]

Listen to the kernel, load what its devices ask for, say why. `journalctl -t kmodd` shows it.

  --dry-run         resolve and tell everything, load nothing
  --root DIR        prefix of every path that is read
  --kernel RELEASE  default: the running one
  -v, --verbose     in a terminal: show debug records too
  --socket PATH     control socket (default {CONTROL_SOCKET})
  --here FIXTURE    for a look on any machine: where modules cannot be loaded, say why and go on as --dry-run,
                    with FIXTURE/lib/modules where there is no module tree
"""

_LONG = {
    "dry-run": "dry-run", "root": "root:", "kernel": "kernel:", "verbose": "v", "socket": "socket:", "here": "here:",
    "help": "h",
}  # fmt: skip


def main(argv: list[str]) -> int:
    """Serve until told to stop: exit 0. 1: something it needs is not there; 2: wrong usage; 3: no module tree."""
    options = Options(argv, "vh", _LONG)
    try:
        given = dict(options)
        if options.operands:
            raise OptionError(f"no operand expected: '{options.operands[0]}'")
    except OptionError as error:
        print(f"kmodd run: {error}\n{USAGE}", end="", file=sys.stderr)
        return 2
    if "h" in given:
        print(USAGE, end="")
        return 0
    root, path = given.get("root", ""), given.get("socket", CONTROL_SOCKET)
    gc.disable()  # until READY
    try:
        notify = Notify()
        spawner = _ask_for_spawner() if notify.under_systemd and not {"dry-run", "here"} & given.keys() else None
        # Only here: the spawner, another Python, starts while this one has its imports, which take as long.
        from kmodd.daemon.main import Daemon, DaemonOptions
        from kmodd.host.journal import open_journal
        from kmodd.host.tree import Tree
        from kmodd.planning.record import DEBUG, INFO

        tree = Tree(root=root, release=given.get("kernel"))
        if tree.guessed:
            print(f"kmodd run: kernel {tree.release}, the only one below {root}", file=sys.stderr)
        dry_run = "dry-run" in given
        if "here" in given:
            tree, dry_run = _here(tree, given["here"], dry_run)
        journal = open_journal(under_systemd=notify.under_systemd, lowest=DEBUG if "v" in given else INFO)
        daemon_options = DaemonOptions(
            dry_run=dry_run,
            spawn_loaders=not notify.under_systemd,
            control_path=_control_path(path),
            run=not (dry_run or root) and os.geteuid() == 0 and path == CONTROL_SOCKET,
        )
        daemon = Daemon(tree, journal, notify, daemon_options, spawner)
    except (KmoddError, OSError, ImportError) as error:
        print(f"kmodd run: {error}", file=sys.stderr)
        return 1
    daemon.run()
    return 0


def _ask_for_spawner() -> Spawner | None:
    """The spawner that systemd makes; None: not to be had now, the daemon asks again."""
    try:
        return Spawner.of_systemd()
    except OSError:
        return None


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
    from kmodd.host.tree import Tree  # after the spawner, as in `main`

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
