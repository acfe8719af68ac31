"""`wardline siem`: feed the configured sinks of security events; `wardline siem test SINK`: see what one makes of an event."""

import argparse

from pipeline.cli.common import Commands, add_clickhouse, add_kafka, config_of, home_of, open_home, printable, refuse_strangers
from pipeline.cli.processes import port
from schemas.errors import OperatorFault, PeerFault
from schemas.process import take_or_fail
from schemas.telemetry import setup_logging


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add `siem` and `siem test`."""
    text = "send findings, revocations and refused calls to the SIEM"
    siem = commands.add_parser("siem", parents=[common], help=text, allow_abbrev=False)
    add_kafka(siem)
    add_clickhouse(siem)
    siem.add_argument("--metrics-port", type=port, default=0, metavar="P", help="port for Prometheus (default 0: free)")
    siem.set_defaults(run=run_siem, process=True)
    inner = siem.add_subparsers(title="commands", metavar="COMMAND", required=False)
    where = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    where.add_argument("--home", metavar="DIR", help=argparse.SUPPRESS)
    text = "send a test event to a sink: exit code 0 when it was taken, 1 when it is away, 2 when somebody must act"
    test = inner.add_parser("test", parents=[where], help=text, allow_abbrev=False)
    test.add_argument("sink", metavar="SINK", help="its name in the configuration; `alerts` is the topic")
    test.set_defaults(run=run_test, process=False)


def run_siem(args: argparse.Namespace) -> int:
    """`wardline siem`."""
    refuse_strangers()
    home = home_of(args)
    open_home(home)
    config = config_of(args, home)
    if not config.siem:
        raise OperatorFault(f"{home.config}: has no [[siem]], so there is no sink to feed")
    lock = take_or_fail(home.run / "siem.lock", "siem")
    setup_logging("siem")
    from pipeline.shells import siem

    try:
        return siem.run(home, config, metrics_port=args.metrics_port)
    finally:
        lock.release()


def run_test(args: argparse.Namespace) -> int:
    """`wardline siem test`; returns 0, or 1 for a sink that is away. Raises OperatorFault where somebody must act."""
    home = home_of(args)
    config = config_of(args, home)
    from pipeline.shells import siem

    try:
        where, uid, said = siem.send_sample(home, config, args.sink)
    except PeerFault as fault:
        print(f"{args.sink}: NOT taken: {printable(str(fault))}")
        return 1
    print(f"{args.sink}: taken by {where}\n  came back  {printable(said)}\n  find it by metadata.uid {uid}")
    return 0
