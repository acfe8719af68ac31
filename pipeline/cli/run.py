"""`wardline run`: a program of yours under governance, as one of the agents.

    wardline run --as researcher -- python3 fetch.py               its proxy variables say the door's address and its credential
    wardline run --as researcher --contain -- python3 fetch.py     and nothing else is reachable: see `contain`

A plain run becomes the program: same process, same terminal, same signals, same exit code. It keeps honest programs honest. A
containment keeps the others too, and does not let them see the credential.
"""

import argparse
import ctypes
import os
import signal
import sys
from typing import Final

from pipeline.cli.common import Commands, home_of
from pipeline.cli.contain import begin
from pipeline.cli.credential import credential_of
from pipeline.cli.doors import find_door
from pipeline.cli.proxyenv import Proxy, governed, user_of
from schemas.config import load_config
from schemas.errors import OperatorFault
from schemas.vocabulary import shown

NOT_FOUND: Final = 127
NOT_RUN: Final = 126
"""Exit codes of a shell for a program that is not there, and for one that cannot be executed."""

_PR_SET_PDEATHSIG: Final = 1


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add `run`."""
    text = "run a program under governance, as one of the agents"
    parser = commands.add_parser("run", parents=[common], help=text, allow_abbrev=False)
    parser.add_argument("--as", dest="agent", required=True, metavar="AGENT", help="the agent that acts")
    parser.add_argument("--session", default="", metavar="S", help="what its calls belong to; may be revoked by this name")
    parser.add_argument("--door", metavar="NAME", help="this door, `door-N` (default: the first that is ready)")
    parser.add_argument("--credential-file", metavar="FILE",
                        help="its secret or token, mode 0600 (default: $WARDLINE_CREDENTIAL, or what --keep kept)")  # fmt: skip
    parser.add_argument("--contain", action="store_true", help="in namespaces of its own, whose only way out is the door")
    inside = parser.add_argument_group("inside a containment")
    for name, what in (("--bind", "read and write"), ("--ro-bind", "read")):
        inside.add_argument(name, action="append", default=[], metavar="PATH", help=f"a file or folder that it may {what}")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="the program and its arguments, behind `--`")
    parser.set_defaults(run=run_run)


def run_run(args: argparse.Namespace) -> int:
    """`wardline run`: the program's exit code, 128 and the signal's number where one ended it."""
    user = user_of(args.agent, args.session)
    home = home_of(args)
    if not args.contain and (args.bind or args.ro_bind):
        raise OperatorFault("--bind and --ro-bind are for a containment: give --contain")
    door = find_door(home, args.door)
    secret = credential_of(home, args.agent, args.credential_file, os.environ)
    if args.contain:
        return begin.run(
            home, load_config(home.config), args.command, user=user, secret=secret, door=args.door or "", bind=args.bind,
            ro_bind=args.ro_bind, umask=args.umask,
        )  # fmt: skip
    proxy = Proxy(host=door.host, port=door.port, user=user, secret=secret)
    return become(args.command, governed(os.environ, proxy), args.umask)


def become(command: list[str], env: dict[str, str], umask: int) -> int:
    """Be the program from here on, as whoever called us meant it: with their umask, and the signals that Python ignores.

    Returns only an exit code, when there is no such program.
    """
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)
    os.umask(umask)
    sys.stdout.flush()
    try:
        os.execvpe(command[0], command, env)
    except OSError as fault:
        print(f"wardline: `{shown(command[0])}`: {(fault.strerror or str(fault)).lower()}", file=sys.stderr)
        return NOT_FOUND if isinstance(fault, FileNotFoundError) else NOT_RUN
