"""Each process alone: `wardline broker | store | control | work | enforce`. `wardline up` starts the same as its children.

The shells are imported when their command runs: together they bring Faust, Arrow and the ClickHouse engine, seconds of work
that no other command needs.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import re
import signal
import time
from pathlib import Path
from typing import Final

from pipeline.cli import enrol
from pipeline.cli.common import Commands, add_clickhouse, add_kafka, config_of, home_of, open_home, refuse_strangers
from pipeline.cli.supervise import AGAIN, DELAY_FIRST_S
from schemas.config import Config
from schemas.errors import OperatorFault, PeerFault
from schemas.home import Home
from schemas.links import embedded_broker
from schemas.process import Lock, leave_with_parent, take_or_fail
from schemas.telemetry import setup_logging

log = logging.getLogger(__name__)

SLOTS_MAX: Final = 1024
"""Workers, enforcers or replays of one home at a time."""

EGRESS_DOORS_MAX: Final = 64
"""Egress doors of one host, as `egress.doors` says too."""

HOST_NAME: Final = re.compile(r"(enforce|replay)-[1-9][0-9]{0,4}")



def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the five processes."""
    broker = commands.add_parser("broker", parents=[common], help="run the embedded broker alone", allow_abbrev=False)
    broker.set_defaults(run=run_broker, process=True)

    store = commands.add_parser("store", parents=[common], help="run the embedded store alone", allow_abbrev=False)
    store.add_argument("--port", type=port, default=0, metavar="P", help="port for ClickHouse clients (default 0: a free one)")
    store.set_defaults(run=run_store, process=True)

    control = commands.add_parser("control", parents=[common], help="run control alone", allow_abbrev=False)
    add_kafka(control)
    control.set_defaults(run=run_control, process=True)

    work = commands.add_parser("work", parents=[common], help="run one worker alone", allow_abbrev=False)
    who = work.add_mutually_exclusive_group()
    who.add_argument("--slot", type=slot, metavar="N", help="this worker's number (default: the first that is free)")
    who.add_argument("--enrol", metavar="FILE", help="be the worker of this enrolment file")
    add_kafka(work)
    add_clickhouse(work)
    work.set_defaults(run=run_work, process=True)

    enforce = commands.add_parser("enforce", parents=[common], help="run one enforcer host alone", allow_abbrev=False)
    which = enforce.add_mutually_exclusive_group()
    which.add_argument("--slot", type=slot, metavar="N", help="this host's number (default: the first that is free)")
    which.add_argument("--name", help="this host's whole name, `enforce-N`")
    which.add_argument("--enrol", metavar="FILE", help="be the host of this enrolment file")
    enforce.add_argument("--doors", type=doors, metavar="N", help="egress doors, on one port (default: egress.doors)")
    text = "the doors' port, 0 for a free one (default: egress.port for enforce-1, the next one for enforce-2, and so on)"
    enforce.add_argument("--egress-port", type=port, metavar="P", help=text)
    enforce.add_argument("--no-adopt", action="store_true", help=argparse.SUPPRESS)  # a replay's host looks after itself alone
    add_kafka(enforce)
    enforce.set_defaults(run=run_enforce, process=True)

    for parser in (broker, store, control, work, enforce):
        parser.add_argument("--metrics-port", type=port, default=0, metavar="P", help="port for Prometheus (default 0: free)")


def port(text: str) -> int:
    """A port number, 0 for a free one."""
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"`{text}` is not a port, 0 to 65535")
    return int(text)


def doors(text: str) -> int:
    """A number of egress doors, from 0."""
    if not text.isascii() or not text.isdigit() or int(text) > EGRESS_DOORS_MAX:
        raise argparse.ArgumentTypeError(f"`{text}` is not a number from 0 to {EGRESS_DOORS_MAX}")
    return int(text)


def slot(text: str) -> int:
    """A slot number, from 1."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= SLOTS_MAX:
        raise argparse.ArgumentTypeError(f"`{text}` is not a number from 1 to {SLOTS_MAX}")
    return int(text)


def _begin(args: argparse.Namespace) -> tuple[Home, Config]:
    refuse_strangers()
    home = home_of(args)
    open_home(home)
    return home, config_of(args, home)


def _enrolled(args: argparse.Namespace, role: str) -> tuple[Home, Config, str]:
    """As `_begin`, with what an enrolment file says put into the home first; the name that it gives, or nothing."""
    if not args.enrol:
        return *_begin(args), ""
    refuse_strangers()
    home = home_of(args)
    open_home(home)
    name = enrol.install(home, Path(args.enrol), role, args.kafka)
    return home, config_of(args, home), name


def _own_name(home: Home, kind: str, number: int | None) -> tuple[str, Lock]:
    """Take the name `KIND-N`: the one asked for, or the first that no process holds. Held until this process ends."""
    if number is not None:
        name = f"{kind}-{number}"
        return name, take_or_fail(home.run / f"{name}.lock", name)
    for n in range(1, SLOTS_MAX + 1):
        lock = Lock(home.run / f"{kind}-{n}.lock")
        if lock.take():
            return f"{kind}-{n}", lock
    raise OperatorFault(f"all {SLOTS_MAX} names `{kind}-N` of `{home.root}` are held")


def run_broker(args: argparse.Namespace) -> int:
    """`wardline broker`."""
    home, config = _begin(args)
    if not embedded_broker(config):
        raise OperatorFault(f"kafka.servers is `{config.kafka.servers}`: the embedded broker is not used")
    lock = take_or_fail(home.run / "broker.lock", "broker")
    setup_logging("broker")
    from pipeline.shells import broker

    try:
        return broker.run(home, config, metrics_port=args.metrics_port)
    finally:
        lock.release()


def run_store(args: argparse.Namespace) -> int:
    """`wardline store`."""
    home, config = _begin(args)
    if config.clickhouse.url:
        raise OperatorFault(f"clickhouse.url is `{config.clickhouse.url}`: the embedded store is not used")
    setup_logging("store")
    from pipeline.shells import store

    return store.run(home, config, port=args.port, metrics_port=args.metrics_port)


def run_control(args: argparse.Namespace) -> int:
    """`wardline control`."""
    home, config = _begin(args)
    lock = take_or_fail(home.run / "control.lock", "control")
    setup_logging("control")
    from pipeline.shells import control, topics

    try:
        try:
            asyncio.run(topics.ensure_topics(home, config))
        except PeerFault as fault:
            # changes are made all the same, and published once the broker is there
            log.warning("%s; what changes is published later", fault)
        return control.run(home, config, metrics_port=args.metrics_port)
    finally:
        lock.release()


def run_work(args: argparse.Namespace) -> int:
    """`wardline work`."""
    home, config, name = _enrolled(args, "worker")
    if name:
        lock = take_or_fail(home.run / f"{name}.lock", name)
    else:
        name, lock = _own_name(home, "work", args.slot)
    if "WARDLINE_PARENT" not in os.environ:
        code = _keep()
        if code is not None:
            return code
    setup_logging(name)
    from pipeline.shells import topics, worker

    try:
        asyncio.run(topics.ensure_topics(home, config))
        return worker.run(home, config, slot=name, metrics_port=args.metrics_port)
    finally:
        lock.release()


def _keep() -> int | None:
    """Go on in a child, and start another whenever one ends with AGAIN; returns None in each child, its exit code here.

    A worker that has lost its membership or hangs ends itself, and only a new process is sound again. Under `wardline up` that
    is the supervisor's work; a worker that was started alone is kept by this. The lock of its name is ours and the child's.
    """
    child = 0

    def forward(number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    while True:
        begun = time.monotonic()
        child = os.fork()
        if child == 0:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            os.setpgid(0, 0)  # Ctrl-C reaches the parent alone, which passes it on once
            os.environ["WARDLINE_PARENT"] = str(os.getppid())
            leave_with_parent()
            return None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, forward)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != AGAIN:
            return code if code >= 0 else 128 - code
        log.warning("the worker wants to be started again")
        time.sleep(max(0.0, DELAY_FIRST_S - (time.monotonic() - begun)))


def run_enforce(args: argparse.Namespace) -> int:
    """`wardline enforce`."""
    home, config, name = _enrolled(args, "enforcer")
    if name:
        lock = take_or_fail(home.run / f"{name}.lock", name)
    elif args.name is not None:
        if not HOST_NAME.fullmatch(args.name):
            raise OperatorFault(f"--name: `{args.name}` is not enforce-N")
        name, lock = args.name, take_or_fail(home.run / f"{args.name}.lock", args.name)
    else:
        name, lock = _own_name(home, "enforce", args.slot)
    setup_logging(name)
    from enforcers import host
    from pipeline.shells import topics

    try:
        try:
            asyncio.run(topics.ensure_topics(home, config))
        except PeerFault as fault:
            # calls are recorded all the same: the outbox keeps them until the broker is there
            log.warning("%s; records wait in the outbox", fault)
        own = 0 if name.startswith("replay-") else config.egress.doors if args.doors is None else args.doors
        return host.run(
            home, config, name=name, metrics_port=args.metrics_port, adopt=not args.no_adopt, doors=own,
            egress_port=egress_port(config, name) if args.egress_port is None else args.egress_port,
        )  # fmt: skip
    finally:
        lock.release()


def egress_port(config: Config, name: str) -> int:
    """The port of the doors of a host: each `enforce-N` of a machine has its own, 0 stays 0.

    Raises OperatorFault where there is none left.
    """
    first = config.egress.port
    number = name.removeprefix("enforce-")
    wanted = first + int(number) - 1 if first and number.isascii() and number.isdigit() else first
    if wanted > 65535:
        raise OperatorFault(f"egress.port: {first} leaves no port for {name}, highest port is 65535")
    return wanted


