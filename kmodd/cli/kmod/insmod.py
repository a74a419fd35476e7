"""`insmod`: load a module file without its dependencies, with output and exit status of kmod 34.

Messages of the kernel log about a failure follow kmod's own message if the log can be read.
"""

from __future__ import annotations

import errno
import os

from kmodd.cli.kmod.messages import ERR, FEATURES, VERSION, Messages, own_reasons
from kmodd.cli.options import OptionError, Options
from kmodd.host.kmsg_reader import KernelLog
from kmodd.loader.in_process import InsertOptions, Machine
from kmodd.names import joined_params, module_of_path

HELP = """\
Usage:
\tinsmod [options] filename [module options]
Options:
\t-f, --force       DANGEROUS: forces a module load, may cause
\t                  data corruption and crash your machine
\t-s, --syslog      print to syslog, not stderr
\t-v, --verbose     enables more messages
\t-V, --version     show version
\t-h, --help        show this help"""
LONG = {
    "force": "f",
    "syslog": "s",
    "verbose": "v",
    "version": "V",
    "help": "h",
    # not in kmod 34
    "force-modversion": "force-modversion",
    "force-vermagic": "force-vermagic",
    "root": "root:",
}
_WORDS = {
    errno.ENOEXEC: "Invalid module format",
    errno.ENOENT: "Unknown symbol in module",
    errno.ESRCH: "Module has wrong symbol version",
    errno.EINVAL: "Invalid parameters",
}


def main(argv: list[str], machine: Machine | None = None) -> int:
    """Run insmod and return 0 or 1.

    argv: the command line without the program's name. machine: loads the module; None: this machine.
    """
    messages = Messages("insmod")
    try:
        return _run(argv, messages, machine)
    finally:
        messages.flush()


def _run(argv: list[str], messages: Messages, machine: Machine | None) -> int:
    flags: set[str] = set()
    root = ""
    options = Options(argv, "psfvVh", LONG, ("force-modversion", "force-vermagic", "root"))
    try:
        for code, value in options:
            match code:
                case "V":
                    messages.show(f"{VERSION}\n{FEATURES}")
                    return 0
                case "h":
                    messages.show(HELP)
                    return 0
                case "root":
                    root = value
                case _:
                    flags.add(code)
    except OptionError as error:
        messages.say(f"insmod: {error}")
        return 1
    messages.syslog = "s" in flags
    match options.operands:
        case []:
            messages.log(ERR, "missing filename.")
        case ["-", *_]:
            messages.log(ERR, "this tool does not support loading from stdin!")
        case [path, *parameters]:
            insert_options = InsertOptions(
                force_modversion=bool(flags & {"f", "force-modversion"}),
                force_vermagic=bool(flags & {"f", "force-vermagic"}),
            )
            real = root + path if path.startswith("/") else path
            return _insert(path, real, joined_params(tuple(parameters)), insert_options, messages, machine or Machine())
    return 1


def _insert(
    path: str, real: str, options: str, insert_options: InsertOptions, messages: Messages, machine: Machine
) -> int:
    try:
        os.stat(real)
    except OSError as error:
        messages.log(ERR, f"could not load module {path}: {error.strerror}")
        return 1
    with KernelLog() as log:
        reply = machine.insert_file(real, options, insert_options)
        if not reply.errno:
            return 0
        messages.log(ERR, f"could not insert module {path}: {_WORDS.get(reply.errno, os.strerror(reply.errno))}")
        for line in own_reasons(reply) or [f"the kernel says: {line}" for line in log.about(*_names(real))]:
            messages.log(ERR, line)
    return 1


def _names(path: str) -> set[str]:
    """Return the names that kernel messages may use: that of the file, and the one in .modinfo."""
    from kmodd.host.module_reader import read_module
    from kmodd.modfile.elf import ElfError, Image  # needed only on failure

    try:
        texts = Image(read_module(path)).modinfo()
    except (OSError, ElfError):
        texts = []
    named = (os.fsdecode(text[5:]) for text in texts if text.startswith(b"name="))
    return {module_of_path(path), *named}
