"""`wardline up`: everything on one machine, each part a process of its own, kept alive until Ctrl-C."""

import argparse
import asyncio
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Final

from pipeline.cli.common import (
    Commands,
    add_clickhouse,
    add_kafka,
    called_as,
    config_of,
    home_of,
    home_words,
    open_home,
    refuse_strangers,
)
from pipeline.cli.processes import doors, egress_port, port, slot
from pipeline.cli.supervise import Child, Supervisor
from schemas.config import Config
from schemas.errors import OperatorFault
from schemas.home import Home
from schemas.links import embedded_broker
from schemas.process import Lock, port_problem, private_dir, read_run_file, write_run_file

PORT_BASE: Final = 17400
"""The store's port; the ports for Prometheus follow it, one for each process in the order of their start."""

EXAMPLES: Final = Path(__file__).parent / "examples"

HOST_STOP_S: Final = 45.0
"""A host waits `egress.stop_ms` and two seconds for its doors, 30 s for `stored`, then closes: this beside `stop_ms`."""

WORKER_STOP_S: Final = 30.0
SERVER_STOP_S: Final = 20.0


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add `up`."""
    parser = commands.add_parser(
        "up", parents=[common], help="run everything on this machine until Ctrl-C", allow_abbrev=False
    )  # fmt: skip
    parser.add_argument("--enforcers", type=slot, default=1, metavar="N", help="enforcer hosts (default 1)")
    parser.add_argument("--workers", type=slot, default=1, metavar="N", help="workers (default 1; more need --kafka)")
    text = "egress doors of each enforcer, on one port (default: egress.doors)"
    parser.add_argument("--doors", type=doors, metavar="N", help=text)
    text = f"first port: the store's, then one each for Prometheus (default {PORT_BASE}; 0: free ports, for doors too)"
    parser.add_argument("--port-base", type=port, default=PORT_BASE, metavar="P", help=text)
    add_kafka(parser)
    add_clickhouse(parser)
    parser.set_defaults(run=run_up)


def run_up(args: argparse.Namespace) -> int:
    """Run everything; returns 0 after one Ctrl-C or SIGTERM, 1 after a second one."""
    refuse_strangers()
    home = home_of(args)
    config = config_of(args, home)
    if embedded_broker(config) and args.workers > 1:
        raise OperatorFault(f"--workers {args.workers}: the embedded broker serves one worker; more need a Kafka (--kafka)")
    open_home(home)
    lock = Lock(home.run / "up.lock")
    if not lock.take():
        raise OperatorFault(f"`{home.root}` is held by process {lock.holder()}, another `wardline up`")
    children = plan(home, config, args)
    _free_or_fail(children, config, config.egress.doors if args.doors is None else args.doors)
    _forget_the_dead(home)
    install_examples(home)
    print(f"starting {', '.join(child.name for child in children)} in {home.root}", flush=True)
    if not embedded_broker(config):
        from pipeline.shells.topics import ensure_topics

        asyncio.run(ensure_topics(home, config))
    path = home.run_file("up")
    said = {
        "name": "up", "pid": os.getpid(), "state": "starting", "address": "", "names": [child.name for child in children],
        "kafka": config.kafka.servers, "clickhouse": config.clickhouse.url,
    }  # fmt: skip

    def state(name: str) -> None:
        said["state"] = name
        if name == "ready":
            print(_welcome(home, config, args, children), flush=True)
        elif name == "stopping":
            print("stopping: what is recorded is stored first (Ctrl-C again forces)", flush=True)
        try:
            write_run_file(path, said)  # last: whoever waits for it finds the addresses printed
        except OSError as fault:  # a full disk: what runs goes on, and `status` sees an older word of ours
            _say(f"{path}: cannot be written: {fault.strerror}")

    try:
        code = Supervisor(home, children, _say).run(state)
    finally:
        path.unlink(missing_ok=True)
        _forget_the_dead(home)
        lock.release()
    print("stopped" if code == 0 else "stopped by force", flush=True)
    return code


def _say(line: str) -> None:
    print(f"wardline: {line}", file=sys.stderr, flush=True)


def plan(home: Home, config: Config, args: argparse.Namespace) -> list[Child]:
    """The processes in the order of their start, with their ports."""
    base = args.port_base
    where = ["--home", str(home.root)]
    kafka = ["--kafka", config.kafka.servers] if config.kafka.servers else []
    clickhouse = ["--clickhouse", config.clickhouse.url] if config.clickhouse.url else []
    children = []
    if embedded_broker(config):
        children.append(Child("broker", ["broker", *where], 0, SERVER_STOP_S))
    if not config.clickhouse.url:
        children.append(Child("store", ["store", *where, "--port", str(base)], 0, SERVER_STOP_S))
    children.append(Child("control", ["control", *where, *kafka], 1, SERVER_STOP_S))
    for n in range(1, args.workers + 1):
        children.append(Child(f"work-{n}", ["work", *where, *kafka, *clickhouse, "--slot", str(n)], 2, WORKER_STOP_S))
    for n in range(1, args.enforcers + 1):
        name = f"enforce-{n}"
        command = ["enforce", *where, *kafka, "--slot", str(n), "--egress-port", str(egress_port(config, name) if base else 0)]
        command += [] if args.doors is None else ["--doors", str(args.doors)]
        children.append(Child(name, command, 3, HOST_STOP_S + config.egress.stop_ms / 1000))
    if config.siem:
        # started beside control and stopped behind the workers, so that what they noticed last is sent too
        children.append(Child("siem", ["siem", *where, *kafka, *clickhouse], 1, SERVER_STOP_S))
    if base + len(children) > 65535:
        raise OperatorFault(f"--port-base {base}: leaves no {len(children)} ports behind it, highest port is 65535")
    for number, child in enumerate(children, 1):
        child.command += ["--metrics-port", str(base + number if base else 0)]
    return children


def _free_or_fail(children: list[Child], config: Config, doors_wanted: int) -> None:
    """Refuse to start while somebody else listens on a port of ours."""
    for child in children:
        for option, text in zip(child.command, child.command[1:], strict=False):
            egress = option == "--egress-port" and doors_wanted
            if not (egress or option in ("--port", "--metrics-port")) or text == "0":
                continue
            fault = port_problem(config.egress.listen if egress else "127.0.0.1", int(text))
            if fault is not None:
                why = (fault.strerror or str(fault)).lower()
                other = "egress.port, or --port-base 0" if egress else "--port-base, or 0"
                raise OperatorFault(f"port {text} of {child.name}: {why}; choose another {other} for free ports")


def _forget_the_dead(home: Home) -> None:
    """Remove the run files of processes that were killed: nobody else does."""
    for file in private_dir(home.run).glob("*.json"):
        said = read_run_file(file)
        if said is None or not said["alive"]:
            file.unlink(missing_ok=True)


def install_examples(home: Home) -> None:
    """Put the example policies and the sample of calls into a home that has none. Never overwrites, never adds to a folder.

    A policy that an operator removed must not come back, so the policies come all at once or not at all.
    """
    if not home.policies.exists():
        made = home.root / f".policies.{os.getpid()}"
        shutil.copytree(EXAMPLES / "policies", made)
        made.chmod(0o700)
        os.rename(made, home.policies)
    sample = home.root / "calls.jsonl"
    if not sample.exists():
        shutil.copyfile(EXAMPLES / "calls.jsonl", sample)


def _welcome(home: Home, config: Config, args: argparse.Namespace, children: list[Child]) -> str:
    rows = []
    if config.kafka.servers:
        rows.append(("kafka", config.kafka.servers, ""))
    if config.clickhouse.url:
        rows.append(("clickhouse", config.clickhouse.url, ""))
    for child in children:
        said = read_run_file(home.run_file(child.name)) or {}
        note = f"metrics {said.get('metrics', '')}" if said.get("metrics") != said.get("address") else "metrics"
        if child.name == "store":
            note += f"; ClickHouse HTTP, user `reader`, password in {home.password('reader')}"
        rows.append((child.name, str(said.get("address", "")), note))
        for door in said.get("doors", ()):
            rows.append((door["name"], str(said["proxy"]), door["why"] or "proxy for http and https"))
    wide = max(len(name) for name, _, _ in rows), max(len(address) for _, address, _ in rows)
    own, where = called_as(), home_words(home)
    lines = ["", "ready", *(f"  {name:{wide[0]}}  {address:{wide[1]}}  {note}".rstrip() for name, address, note in rows)]
    if problem := (read_run_file(home.run_file("control")) or {}).get("policy_problem"):
        lines += ["", f"PROBLEM  {problem['text']}; the policies in force stay, and without any nothing is permitted"]
    lines += ["", "try in another terminal:"]
    proxy = next((door for name, door, _ in rows if name.startswith("door-")), "")
    if proxy:
        lines += [
            f"  {own} agent add{where} researcher --owner me@example.com     # prints the agent's SECRET once",
            f"  curl -x http://researcher:SECRET@{proxy} http://example.com/      # allowed by the example policies",
            f"  curl -x http://researcher:SECRET@{proxy} http://pastebin.com/     # refused, and says why",
        ]
    lines += [
        f"  {own} replay{where} {shlex.quote(str(home.root / 'calls.jsonl'))}",
        f"  {own} sql{where} \"SELECT agent, verdict, count() FROM calls GROUP BY ALL ORDER BY ALL\"",
        f"  {own} status{where}",
        "", "Ctrl-C stops everything; nothing that was recorded is lost",
    ]
    return "\n".join(lines)

