"""`kmodd run`: run the daemon."""

from __future__ import annotations

import gc
import os

from kmodd.cli import byte_code
from kmodd.cli.streams import log_stream
from kmodd.cli.verb import KERNEL, ROOT, SOCKET, Option, Verb
from kmodd.daemon.helper_processes import HelperProcesses
from kmodd.errors import KmoddError, NoTree
from kmodd.host.own_directory import own_directory
from kmodd.host.paths import CONTROL_SOCKET
from kmodd.host.sd_notify import Notify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kmodd.host.tree import Tree

VERB = Verb(
    "run",
    "Run the daemon: load kernel modules for devices and kernel requests, and log each load to the journal.",
    (
        Option("--dry-run", "resolve and log requests, load nothing"),
        Option("-v, --verbose", "log debug records too, as with LogLevel=debug"),
        Option(
            "--here",
            "demonstration on any machine: if modules cannot be loaded, say why and continue as with --dry-run, "
            "using FIXTURE/lib/modules if there is no module tree",
            "FIXTURE",
        ),
        ROOT, KERNEL, SOCKET,
    ),
    status=((0, "stopped by a signal"), (1, "failed to start")),
    examples=(
        ("run --dry-run", "Show what would be loaded on this machine."),
        ("run --dry-run --root /mnt", "The same for the system below /mnt, with this machine's events."),
    ),
)  # fmt: skip


def main(argv: list[str]) -> int:
    """Run the daemon until it is stopped and return 0; 1 if it fails to start, 2 for wrong usage."""
    given = VERB.parse(argv, most=0)
    if isinstance(given, int):
        return given
    root, path = given.get("root"), given.get("socket", CONTROL_SOCKET)
    byte_code.pin()
    gc.disable()  # until READY
    try:
        notify = Notify()
        wants_helpers = notify.under_systemd and "dry-run" not in given and "here" not in given
        is_own = not root and os.geteuid() == 0 and path == CONTROL_SOCKET
        helpers = HelperProcesses.of_systemd(answers_kernel=is_own) if wants_helpers else HelperProcesses()
        # Imported here, so that the helper processes, Pythons too, start while this one imports.
        from kmodd.daemon.main import Daemon
        from kmodd.daemon.options import DaemonOptions
        from kmodd.host.journal import open_journal
        from kmodd.host.tree import Tree
        from kmodd.planning.record import DEBUG, INFO

        tree = Tree(root=root, release=given.get("kernel") or None)
        if tree.guessed:
            VERB.complain(f"kernel {tree.release}, the only one below {root}")
        dry_run = "dry-run" in given
        if "here" in given:
            tree, dry_run = _here(tree, given.get("here"), dry_run)
        lowest = DEBUG if "verbose" in given else INFO
        journal = open_journal(under_systemd=notify.under_systemd, lowest=lowest, stream=log_stream())
        daemon_options = DaemonOptions(
            dry_run=dry_run,
            spawn_loaders=not notify.under_systemd,
            control_path=_control_path(path),
            log_level=DEBUG if "v" in given else None,
            run=is_own and not dry_run,
        )
        daemon = Daemon(tree, journal, notify, daemon_options, helpers)
    except (KmoddError, OSError, ImportError) as error:
        VERB.complain(f"Failed to start: {error}")
        return 1
    daemon.run()
    return 0


def _control_path(path: str) -> str:
    """Return the control socket's path: for users other than root, the default is in their runtime directory."""
    if path != CONTROL_SOCKET or os.geteuid() == 0:
        return path
    own = own_directory(create=True)
    if not own:
        import tempfile  # imported here: it costs as much as all of kmodd, and a service does not need it

        own = tempfile.mkdtemp(prefix="kmodd-")
    return os.path.join(own, "io.kmodd")


def _here(tree: Tree, fixture: str, dry_run: bool) -> tuple[Tree, bool]:
    """Return the tree to use and whether to run dry on this machine; the reasons are printed in one line."""
    from kmodd.host.tree import Tree  # after the spawner, as in `main`

    reasons = []
    if not os.path.exists(f"{tree.root}/proc/modules"):
        reasons.append("this kernel cannot load modules")
    if os.geteuid() != 0:
        reasons.append("only root may load modules")
    try:
        tree.check()
    except NoTree as none:
        releases = os.listdir(f"{fixture}/lib/modules")
        tree = Tree(root=tree.root, release=releases[0], module_dir=fixture)
        reasons.append(f"{none}; matching against {tree.directory}")
    if reasons:
        print(f"kmodd run: Continuing with --dry-run: {'; '.join(reasons)}", flush=True)
    return tree, dry_run or bool(reasons)
