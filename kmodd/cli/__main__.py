"""Picks the program by the name it was called by, or by its first word."""

from __future__ import annotations

import gc
import os
import sys

import kmodd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

VERBS = {
    "run": "the daemon",
    "status": "what the daemon does now",
    "reload": "have the daemon read indexes and configuration again",
    "settle": "wait until all events so far are answered",
    "explain": "what would be loaded for a modalias, module, alias, /sys or /dev path, and why",
    "lookup": "the modules that an alias names",
    "devices": "each device, its driver, and the modules that match it",
    "lint": "look for mistakes in the configuration",
    "seal": "load nothing any more but what a rule allows; rehearse it, take it back, or shut the kernel for good",
    "policy": "what may be loaded for whom: check the rules, test them, have some suggested",
    "convert-config": "turn an old conf.modules or modules.conf into modprobe.d",
    "static-nodes": "the device nodes whose opening loads a module",
    "complete": "",
    "loader": "",
    "request": "",
}
"""Word → what it does; without words: not for people."""

TOOLS = ("modprobe", "insmod", "rmmod", "lsmod", "modinfo", "depmod")
"""Programs that scripts know by these names; each is a word of kmodd as well."""


def usage() -> str:
    """The text of --help."""
    words = "\n".join(f"  {verb:16}{text}" for verb, text in VERBS.items() if text)
    tools = "\n".join(f"  {tool:16}as kmod's" for tool in TOOLS)
    return (
        "usage: kmodd VERB [OPTION…]\n\n"
        "Loads kernel modules for devices, for the kernel and for people, and says why.\n"
        f"\nverbs:\n{words}\n\ntools:\n{tools}\n\n"
        "`kmodd VERB --help` tells more. What was loaded and why: journalctl -t kmodd\n"
    )


def main(argv: list[str] | None = None) -> int:
    """Run one program; the answer is its exit status."""
    own_name, *words = sys.argv if argv is None else argv
    called = os.path.basename(own_name)
    if called in TOOLS:
        return _run(called, words)
    match words:
        case ["--version" | "-V", *_]:
            print(f"kmodd {kmodd.__version__}")
            return 0
        case ["--help" | "-h" | "help", *_]:
            print(usage(), end="")
            return 0
        case [verb, *rest] if verb in VERBS or verb in TOOLS:
            return _run(verb, rest)
        case [verb, *_]:
            known = ", ".join([*(word for word, text in VERBS.items() if text), *TOOLS])
            print(f"kmodd: no verb {verb!r}; expected one of {known}", file=sys.stderr)
            return 2
        case _:
            print(usage(), end="", file=sys.stderr)
            return 2


def leave(status: int) -> NoReturn:
    """End the process without taking the interpreter apart, which takes a tool a tenth of its time and does nothing."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        status = 1
    os._exit(status)


def _run(verb: str, words: list[str]) -> int:
    gc.disable()  # nothing of an import is garbage, and a tool ends before it has made any that counts
    folder = "kmodd.cli.kmod" if verb in TOOLS else "kmodd.cli"
    program = __import__(f"{folder}.{verb.replace('-', '_')}", fromlist=["main"])  # importlib takes 0.3 ms more
    if verb not in TOOLS:
        gc.freeze()
        gc.enable()
    try:
        status: int = program.main(words)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has gone, as `| head` does: nothing to say, and nothing more to write at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return status


if __name__ == "__main__":
    leave(main())
