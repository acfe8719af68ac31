"""`wardline demo`: the whole loop on this machine in about a minute, with nothing but what is installed."""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.cli.common import Commands, home_of, refuse_strangers
from pipeline.cli.demo.facts import Missed
from pipeline.cli.demo.play import Play
from pipeline.cli.demo.show import Show
from schemas.errors import PeerFault
from schemas.home import Home

FAILED = 1


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add `demo`."""
    text = "see an agent that is turned being refused, detected and revoked, in about a minute (a home of its own)"
    parser = commands.add_parser("demo", parents=[common], help=text, allow_abbrev=False)
    parser.set_defaults(run=run_demo)


def run_demo(args: argparse.Namespace) -> int:
    """`wardline demo`: 0 when every part of the story has happened, else 1 saying which has not. The home is kept."""
    refuse_strangers()
    named = args.home or os.environ.get("WARDLINE_HOME")
    home = home_of(args) if named else Home(Path(tempfile.mkdtemp(prefix="wardline-demo-")))
    try:
        Play(home, Show()).run()
    except (Missed, PeerFault, subprocess.TimeoutExpired) as fault:
        print(f"wardline: the demo has failed: {fault}; logs are in {home.log}", file=sys.stderr)
        return FAILED
    return 0
