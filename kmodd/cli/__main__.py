"""Run the program named by argv[0], as busybox does, or by the first argument."""

from __future__ import annotations

import gc
import os
import sys

from kmodd.cli.streams import close_streams, open_streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

VERBS = {
    "run": "run the daemon",
    "status": "show the state of the daemon",
    "reload": "reload indexes and configuration of the daemon",
    "settle": "wait until all pending events are handled",
    "wait": "wait until a module or device has finished starting",
    "monitor": "print each decision of the daemon when it is recorded",
    "why": "show why a module is loaded or a device has its driver, or why not, and for whom",
    "history": "show what was loaded, refused or failed, for what and when",
    "timeline": "draw when the modules of a boot were loaded, and what the boot waited for",
    "blame": "list the slowest modules of a boot, and what could have gone in parallel",
    "explain": "show what would be loaded for a modalias, module, alias, /sys or /dev path, and why",
    "lookup": "print the modules that match an alias",
    "devices": "list devices, their drivers, and the modules that match them",
    "whatif": "compare each device's modules with those of another kernel, and with an initrd",
    "record": "write this machine's devices in umockdev's format",
    "metrics": "print the counters of the daemon as OpenMetrics",
    "lint": "check the configuration for mistakes",
    "check": "check configuration, installation and hardening, and name the command that mends each finding",
    "verify": "compare what is loaded with the module files, the journal and the kernel's record of loads",
    "seal": "refuse modules that no rule allows; rehearse, undo, or disable module loading in the kernel",
    "deny": "forbid modules, for all or for some, and say what remains true of them",
    "allow": "take back what `kmodd deny` wrote, or make an exception, also for a time",
    "policy": "check the rules of policy.d, test them, or suggest some",
    "profile": "write what modules this machine uses, as rules or a list, and test that by the history",
    "convert-config": "convert an old conf.modules or modules.conf to modprobe.d",
    "complete": "",
    "loader": "",
    "command": "",
    "request": "",
    "requester": "",
    "static-nodes": "",
}
"""Verb → its line in the help; an empty text hides an internal verb, and one of kmod's."""

TOOLS = ("modprobe", "insmod", "rmmod", "lsmod", "modinfo", "depmod")
"""kmod's tools; each is also a verb of kmodd."""


def usage() -> str:
    """Return the text of --help."""
    from kmodd.cli.verb import columns, help_width  # only here: the tools do without

    width = help_width()
    verbs = [(f"  {verb}", text) for verb, text in VERBS.items() if text]
    tools = [(f"  {tool}", "as kmod's") for tool in (*TOOLS, "static-nodes")]
    return (
        "usage: kmodd VERB [OPTION…]\n\n"
        "Load kernel modules on request of devices, the kernel or users, and record the reason.\n"
        f"\nverbs:\n{columns(verbs, width, 18)}\ntools:\n{columns(tools, width, 18)}\n"
        "See `kmodd help VERB` for details, and `journalctl -t kmodd` for what was loaded and why.\n"
    )


def main(argv: list[str] | None = None) -> int:
    """Run one program and return its exit status.

    argv: the command line with the program's name; None: sys.argv. 2 is returned for an unknown verb.
    """
    own_name, *words = sys.argv if argv is None else argv
    called = os.path.basename(own_name)
    open_streams(_program(called, words))
    if called in TOOLS:
        return _run(called, words)
    match words:
        case ["--version" | "-V", *_]:
            from kmodd.cli.features import version

            print(version())
            return 0
        case ["help", verb, *_] if verb in VERBS or verb in TOOLS:
            return _run(verb, ["--help"])
        case ["--help" | "-h" | "help"]:
            print(usage(), end="")
            return 0
        case [verb, *rest] if verb in VERBS or verb in TOOLS:
            return _run(verb, rest)
        case ["--help" | "-h" | "help", verb, *_] | [verb, *_]:
            from kmodd.cli.similar import hint

            known = [*(word for word, text in VERBS.items() if text), *TOOLS, "help"]
            print(f"kmodd: unknown verb {verb!r}{hint(verb, known) or '; see `kmodd help`'}", file=sys.stderr)
            return 2
        case _:
            print("kmodd: VERB is missing; see `kmodd help`", file=sys.stderr)
            return 2


def _program(called: str, words: list[str]) -> str:
    """Return the name of the program at the beginning of its messages."""
    if called in TOOLS:
        return called
    verb = next(iter(words), "")
    return verb if verb in TOOLS else f"kmodd {verb}" if verb in VERBS else "kmodd"


def leave(status: int) -> NoReturn:
    """End the process without finalizing the interpreter, which takes a tenth of a tool's time and has no effect."""
    os._exit(close_streams(status))


def _run(verb: str, words: list[str]) -> int:
    gc.disable()  # imports leave no garbage, and a tool ends before it has produced much
    folder = "kmodd.cli.kmod" if verb in TOOLS else "kmodd.cli"
    program = __import__(f"{folder}.{verb.replace('-', '_')}", fromlist=["main"])  # importlib takes 0.3 ms more
    if verb not in TOOLS:
        gc.freeze()
        gc.enable()
    try:
        status: int = program.main(words)
    except KeyboardInterrupt:
        return 130
    return status


if __name__ == "__main__":
    leave(main())
