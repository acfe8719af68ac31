"""`wardline pause` and `wardline resume`: refuse everything, everywhere, for an incident's first minute."""

import argparse
from typing import Final

from pipeline.cli.applied import add_waiting, report
from pipeline.cli.common import Commands, config_of, home_of
from pipeline.shells.controlclient import Control

UNSAID: Final = "by hand"
"""The reason of a pause whose first minute left no time for one."""


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add both."""
    text = "refuse every call, everywhere, until `resume`"
    pause = commands.add_parser("pause", parents=[common], help=text, allow_abbrev=False)
    pause.add_argument("--reason", default=UNSAID, metavar="TEXT", help=f"why, for whoever reads the audit (default: {UNSAID})")
    pause.set_defaults(run=run_pause)
    resume = commands.add_parser("resume", parents=[common], help="end a pause", allow_abbrev=False)
    resume.set_defaults(run=run_resume)
    for parser in (pause, resume):
        add_waiting(parser)


def run_pause(args: argparse.Namespace) -> int:
    """`wardline pause`: 0 when every door refuses everything, else 1 with the names of those that may not."""
    config = config_of(args, home := home_of(args))
    control = Control(home, config)
    return report(control, config, args, control.change("pause", reason=args.reason), "paused")


def run_resume(args: argparse.Namespace) -> int:
    """`wardline resume`."""
    config = config_of(args, home := home_of(args))
    control = Control(home, config)
    return report(control, config, args, control.change("resume"), "resumed")
