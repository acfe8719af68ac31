"""The command `wardline`: its parser, and the last place where an error becomes one line."""

import argparse
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

from pipeline.cli.common import home_option
from schemas.errors import WardlineError
from schemas.process import leave_with_parent

MODULES: Final[Mapping[str, Sequence[str]]] = {
    "up": ("up",), "demo.command": ("demo",), "status": ("status",), "run": ("run",), "replay": ("replay",),
    "calls": ("calls",), "chain": ("chain",), "explain": ("explain",), "inventory": ("inventory",), "top": ("top",),
    "findings": ("findings",), "finding": ("finding",), "exceptions": ("exceptions",), "respond": ("respond",),
    "sql": ("sql",), "policy": ("policy",), "agent": ("agent",), "revoke": ("revoke", "unrevoke", "revocations"),
    "pause": ("pause", "resume"),
    "enrol": ("enforcer", "worker"), "keys": ("key",), "audit": ("audit",), "deadletter": ("deadletter",),
    "processes": ("broker", "store", "control", "work", "enforce"), "siem": ("siem",),
}  # fmt: skip
"""Each module of `pipeline.cli` with its commands, in the order of `wardline --help`. A command imports its own module alone:
all of them cost 0.3 s of processor time, and a home starts six processes."""

CRASHED: Final = 1
"""Exit code of a process that may do better when it is started again."""

UNSETTLED: Final = 1
"""Exit code of a change that did not happen, or may have: not an error in what was asked."""


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"wardline: {message}; see `{self.prog} --help`\n")


def build_parser(command: str = "") -> argparse.ArgumentParser:
    """The whole command line; of a known command, that one alone."""
    parser = _Parser(prog="wardline", description="Egress governance for AI agents: decide, record, prove.", allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    parser.set_defaults(process=False)
    common = home_option()
    mine = [module for module, names in MODULES.items() if command in names]
    for module in mine or MODULES:
        importlib.import_module(f"pipeline.cli.{module}").register(commands, common)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Never lets a traceback through for an error that is somebody's to put right."""
    leave_with_parent()  # before anything slow: our parent may end while we import
    umask = os.umask(0o077)
    logging.getLogger().addHandler(logging.NullHandler())  # a client library's warnings are no business of the user's
    supervised = False
    try:
        words = sys.argv[1:] if argv is None else argv
        args = build_parser(words[0] if words else "").parse_args(words)
        args.umask = umask  # of whoever called us, for a program that is theirs
        supervised = args.process and "WARDLINE_PARENT" in os.environ
        return int(args.run(args))
    except WardlineError as fault:
        print(f"wardline: {fault}", file=sys.stderr)
        if fault.retriable and supervised:
            return CRASHED  # whoever started us tries again; 2 would say that it is of no use
        if fault.unsettled:
            return UNSETTLED
    except BrokenPipeError:
        # whoever read our output has seen enough (`| head`); the interpreter would complain once more when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as fault:
        where = f"{fault.filename}: " if fault.filename else ""
        print(f"wardline: {where}{(fault.strerror or str(fault)).lower()}", file=sys.stderr)
    except KeyboardInterrupt:
        print("wardline: interrupted", file=sys.stderr)
        return 130
    except Exception as fault:
        if supervised or os.environ.get("WARDLINE_DEBUG"):
            traceback.print_exc()  # into a log
        else:
            what = f"{type(fault).__name__}: {str(fault).partition(chr(10))[0]}"
            print(f"wardline: a fault of its own: {what} (WARDLINE_DEBUG=1 says where)", file=sys.stderr)
        return CRASHED
    return 2


if __name__ == "__main__":
    sys.exit(main())
