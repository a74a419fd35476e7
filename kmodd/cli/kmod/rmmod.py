"""`rmmod`: unload modules by name or file, with output and exit status of kmod 34."""

from __future__ import annotations

import os

from kmodd.cli.kmod.messages import ERR, FEATURES, VERSION, Messages
from kmodd.cli.options import OptionError, Options
from kmodd.host.proc_modules import holders, read_loaded
from kmodd.kernel.proc_modules import NOTHING_LOADED, Loaded
from kmodd.loader.in_process import InsertOptions, Machine
from kmodd.names import ModuleName, module_name, module_of_path

HELP = """\
Usage:
\trmmod [options] [list of modulenames]
Options:
\t-f, --force       DANGEROUS: forces a module unload and may
\t                  crash your machine
\t-s, --syslog      print to syslog, not stderr
\t-v, --verbose     enables more messages
\t-V, --version     show version
\t-h, --help        show this help"""
LONG = {"force": "f", "syslog": "s", "verbose": "v", "version": "V", "help": "h", "root": "root:"}
_NOT_REMOVED = "could not remove '{}': {}"


def main(argv: list[str], machine: Machine | None = None) -> int:
    """Run rmmod and return 0, or 1 if a module was not removed.

    argv: the command line without the program's name. machine: removes the modules; None: this machine.
    """
    messages = Messages("rmmod")
    try:
        return _run(argv, messages, machine)
    finally:
        messages.flush()


def _run(argv: list[str], messages: Messages, machine: Machine | None) -> int:
    force, root = False, ""
    options = Options(argv, "fsvVh", LONG, ("root",))
    try:
        for code, value in options:
            match code:
                case "f":
                    force = True
                case "s":
                    messages.syslog = True
                case "root":
                    root = value
                case "V":
                    messages.show(f"{VERSION}\n{FEATURES}")
                    return 0
                case "h":
                    messages.show(HELP)
                    return 0
    except OptionError as error:
        messages.say(f"rmmod: {error}")
        return 1
    if not options.operands:
        messages.log(ERR, "missing module name.")
        return 1
    machine = machine or Machine()
    failed = [text for text in options.operands if not _remove(text, force, root, messages, machine)]
    return 1 if failed else 0


def _remove(text: str, force: bool, root: str, messages: Messages, machine: Machine) -> bool:
    """Remove a module; return whether it was removed, after an error message if not."""
    is_file = os.path.exists(root + text if text.startswith("/") else text)
    name = module_of_path(text) if is_file else module_name(text.partition(".")[0])
    if not force and not _is_removable(name, _loaded(root), root, messages):
        return False
    code = machine.remove_module(name, InsertOptions(force_removal=force))
    if not code:
        return True
    messages.log(ERR, _NOT_REMOVED.format(name, os.strerror(code)))
    messages.log(ERR, f"could not remove module {text}: {os.strerror(code)}")
    return False


def _loaded(root: str) -> Loaded:
    try:
        return read_loaded(root)
    except OSError:
        return NOTHING_LOADED


def _is_removable(name: ModuleName, loaded: Loaded, root: str, messages: Messages) -> bool:
    """Return whether a module can be removed, after an error message if not."""
    module = loaded.modules.get(name)
    if module is None:
        is_not = "is builtin." if _is_builtin(name, root) else "is not currently loaded"
        messages.log(ERR, f"Module {name} {is_not}")
    elif module.holders:
        messages.log(ERR, f"Module {name} is in use by: {' '.join(holders(module, root))}")
    elif module.refcnt is None:
        messages.log(ERR, "Module unloading is not supported")
    elif module.refcnt > 0:
        messages.log(ERR, f"Module {name} is in use")
    elif module.refcnt < 0 or module.state == "going":
        messages.log(ERR, f"Module {name} is being unloaded")
    else:
        return True
    return False


def _is_builtin(name: ModuleName, root: str) -> bool:
    from kmodd.host.tree import Tree  # most removals need no index

    return Tree(root).quick_snapshot(like_kmod=True).catalog.is_builtin(name)
