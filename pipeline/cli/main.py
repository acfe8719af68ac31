"""The command `wardline`: its parser, and the last place where an error becomes one line."""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Final, NoReturn

from pipeline.cli import (
    agent,
    audit,
    calls,
    chain,
    deadletter,
    enrol,
    exceptions,
    explain,
    finding,
    findings,
    inventory,
    keys,
    pause,
    policy,
    processes,
    replay,
    respond,
    revoke,
    run,
    siem,
    sql,
    status,
    top,
    up,
)
from pipeline.cli.common import home_option
from pipeline.cli.demo import command as demo
from pipeline.shells.controlclient import Unsettled
from schemas.errors import WardlineError
from schemas.process import leave_with_parent

MODULES: Final = (
    up, demo, status, run, replay, calls, chain, explain, inventory, top, findings, finding, exceptions, respond, sql, policy,
    agent, revoke, pause, enrol, keys, audit, deadletter, processes, siem,
)  # fmt: skip
"""In the order of `wardline --help`."""

CRASHED: Final = 1
"""Exit code of a process that may do better when it is started again."""

UNSETTLED: Final = 1
"""Exit code of a change that did not happen, or may have: not an error in what was asked."""


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"wardline: {message}; see `{self.prog} --help`\n")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(prog="wardline", description="Egress governance for AI agents: decide, record, prove.", allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    parser.set_defaults(process=False)
    common = home_option()
    for module in MODULES:
        module.register(commands, common)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Never lets a traceback through for an error that is somebody's to put right."""
    leave_with_parent()  # before anything slow: our parent may end while we import
    umask = os.umask(0o077)
    logging.getLogger().addHandler(logging.NullHandler())  # a client library's warnings are no business of the user's
    supervised = False
    try:
        args = build_parser().parse_args(argv)
        args.umask = umask  # of whoever called us, for a program that is theirs
        supervised = args.process and "WARDLINE_PARENT" in os.environ
        return int(args.run(args))
    except WardlineError as fault:
        print(f"wardline: {fault}", file=sys.stderr)
        if fault.retriable and supervised:
            return CRASHED  # whoever started us tries again; 2 would say that it is of no use
        if isinstance(fault, Unsettled):
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
