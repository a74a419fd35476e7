"""`lsmod`: list loaded modules from a single read of /proc/modules, which is consistent while modules come and go.

Output and exit status are those of kmod 34; `--json` is an extension.
"""

from __future__ import annotations

import sys

from kmodd.cli.kmod.messages import FEATURES, VERSION
from kmodd.cli.options import OptionError, Options
from kmodd.host.proc_modules import holders, read_loaded
from kmodd.kernel.proc_modules import Loaded

HELP = """\
Usage:
\tlsmod [options]
Options:
\t-s, --syslog      print to syslog, not stderr
\t-v, --verbose     enables more messages
\t-V, --version     show version
\t-h, --help        show this help
\t    --json        print an array of objects
"""
_LONG = {"syslog": "s", "verbose": "v", "version": "V", "help": "h", "json": "json", "root": "root:"}


def main(argv: list[str]) -> int:
    """Run lsmod and return 0 or 1.

    argv: the command line without the program's name.
    """
    options = Options(argv, "svVh", _LONG, ("json", "root"))
    as_json, root = False, ""
    try:
        for code, value in options:
            match code:
                case "V":
                    print(f"{VERSION}\n{FEATURES}")
                    return 0
                case "h":
                    print(HELP, end="")
                    return 0
                case "json":
                    as_json = True
                case "root":
                    root = value
    except OptionError as error:
        print(f"lsmod: {error}", file=sys.stderr)
        return 1
    if options.operands:
        print("lsmod: ERROR: too many arguments provided.", file=sys.stderr)
        return 1
    try:
        loaded = read_loaded(root)
    except OSError as error:
        print(f"lsmod: ERROR: could not open /proc/modules: {error.strerror}", file=sys.stderr)
        print(f"lsmod: ERROR: could not get list of modules: {error.strerror}", file=sys.stderr)
        return 1
    sys.stdout.write(_json(loaded, root) if as_json else table(loaded, root))
    return 0


def table(loaded: Loaded, root: str) -> str:
    """Return the table as kmod prints it."""
    lines = ["Module                  Size  Used by\n"]
    for module in loaded.modules.values():
        count = -2 if module.refcnt is None else module.refcnt  # kmod prints -ENOENT if the kernel cannot unload
        users = "".join(f"{',' if number else ' '}{name}" for number, name in enumerate(holders(module, root)))
        lines.append(f"{module.name:<19} {module.size:8d}  {count}{users}\n")
    return "".join(lines)


def _json(loaded: Loaded, root: str) -> str:
    import json

    rows = [
        {
            "module": module.name,
            "size": module.size,
            "used": module.refcnt,
            "used_by": list(holders(module, root)),
            "state": module.state,
        }
        for module in loaded.modules.values()
    ]
    return json.dumps(rows, indent=1) + "\n"
