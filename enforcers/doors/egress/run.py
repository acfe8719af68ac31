"""A process that is one egress door: `python -m enforcers.doors.egress.run --home DIR`, its host's child.

    orders on stdin -> lock, folder, board, agents, policies -> listens, says `ready` -> SIGTERM -> accepts nothing more
      -> calls that are out end, `stop_ms` at most -> tunnels are cut -> every effect is written -> the spool is closed

It says how it is in its run file, every second and with every change of its state. It leaves with its parent. One that is
killed leaves a spool that its host adopts.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import uvloop

from enforcers.core.addresses import parse_rules
from enforcers.doors.egress.dial import Dialer
from enforcers.doors.egress.door import Door
from enforcers.doors.egress.identify import Identify
from enforcers.doors.egress.look import Clock
from enforcers.doors.egress.orders import Orders, parse_orders
from enforcers.doors.egress.own import Own
from enforcers.doors.egress.resolve import Resolver
from enforcers.doors.obeyed import LOOK_S, Obeyed
from enforcers.doors.spooler import Spooler
from ext.wires import Listener
from schemas.errors import OperatorFault, PeerFault, WardlineError
from schemas.home import Home
from schemas.keys import query_key
from schemas.process import OPERATOR, Lock, leave_with_parent, unix_socket, write_run_file
from schemas.telemetry import serve_metrics, setup_logging
from schemas.vocabulary import host_port

log = logging.getLogger(__name__)

BACKLOG: Final = 1024

SAY_S: Final = 1.0
"""How often the run file is written."""

HELD_S: Final = 5.0
"""How long the name's lock may be held by the door before us, which is leaving."""

POLICIES_S: Final = 5.0
"""How long the first policies are waited for before it listens: behind that it refuses call by call (`stale`)."""

CLOSE_S: Final = 1.0
"""How long the last effects may wait for room; then the spool is left to the host, as a crash would leave it."""

SWITCH_S: Final = 0.001
"""How soon a thread (policies, scrypt, metrics) gives way to the one that serves."""

GC_ALLOCATIONS: Final = 50_000
"""Between two collections of the youngest garbage: nearly everything here is freed without one."""


class Stopped(Exception):
    """Our host wants us to stop before we serve."""


class Server:
    """One door process at work."""

    def __init__(self, home: Home, orders: Orders) -> None:
        self._home = home
        self._name = orders.name
        self._orders = orders
        self._state = "starting"
        self._why = ""
        self._address = ""
        self._metrics = ""
        self._stop = asyncio.Event()
        self._spooler: Spooler
        self._identify: Identify
        self._obeyed: Obeyed | None = None
        self._door: Door | None = None
        self._listeners: list[Listener] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Serve until we are asked to stop; returns the exit code."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is our host's to hear
        lock = await self._own_lock()
        try:
            self._metrics = serve_metrics()
            self._say()
            await self._make()
            await self._serve()
        except Stopped:
            return 0
        finally:
            self._home.run_file(self._name).unlink(missing_ok=True)
            self._home.door_socket(self._name).unlink(missing_ok=True)
            lock.release()
        return 3 if self._door is not None and self._door.failed else 0

    async def _own_lock(self) -> Lock:
        lock, deadline = Lock(self._home.run / f"{self._name}.lock"), time.monotonic() + HELD_S
        while not lock.take():
            if time.monotonic() > deadline:
                raise OperatorFault(f"{self._name} is held by process {lock.holder()} (`{lock.path}`)")
            await self._rest(f"waiting for process {lock.holder()} to let go of {self._name}")
        return lock

    async def _rest(self, why: str) -> None:
        """A short while of waiting. Raises Stopped when we are to stop."""
        if self._stop.is_set():
            raise Stopped
        if why != self._why:
            self._why = why
            self._say()
        await asyncio.sleep(LOOK_S)

    # -- what it is made of ------------------------------------------------------------------------------------------

    async def _make(self) -> None:
        """Have a folder, a spool, a board, agents and policies. Raises OperatorFault for a configuration that is no good."""
        home, orders = self._home, self._orders
        config, folder = orders.egress, home.host(orders.host)
        rules, resolver = parse_rules(config.allow_addresses), Resolver(config)
        key = query_key(home)
        self._identify = identify = Identify(home.agents(orders.host), orders.issuers)
        while True:
            try:
                self._spooler = Spooler(folder, int(orders.boot, 16), orders.enforcer)
                break
            except (PeerFault, OSError) as fault:
                await self._rest(f"no spool yet: {fault}")
        while self._obeyed is None:
            try:
                self._obeyed = Obeyed(home.board(orders.host), folder / "bundle", self._spooler.folder, identify.refresh)
            except (PeerFault, OSError) as fault:
                await self._rest(f"no room for a word yet: {fault}")
        until = time.monotonic() + POLICIES_S
        self._obeyed.look(wait=True)
        while not self._obeyed.may_decide and time.monotonic() < until:
            await self._rest("waiting for the first policies and agents")
            self._obeyed.look(wait=True)
        own = Own(home.run, (*orders.own, host_port(config.listen, orders.port)))
        await own.begin(resolver)
        self._door = Door(
            self._name, config, spooler=self._spooler, obeyed=self._obeyed, identify=identify,
            dialer=Dialer(config, rules, own, resolver), own=own, query_key=key,
        )  # fmt: skip
        self._door.figures.serve()
        for work in (own.keep(resolver), identify.watch(), self._keep_saying()):
            self._begin(work)

    def _begin(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """A part that should go on for ever has ended: a door that is not whole does not serve."""
        self._tasks.discard(task)
        if not task.cancelled() and self._door is not None:
            log.error("a part of the door has ended: it starts again", exc_info=task.exception())
            self._door.fail()
            self._stop.set()

    # -- serving -----------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        door, config = self._door, self._orders.egress
        assert door is not None
        clock = Clock(door, self._stop.set)
        try:
            beside = unix_socket(self._home.door_socket(self._name), BACKLOG)
            for made in (_tcp_socket(config.listen, self._orders.port), beside):
                self._listeners.append(door.dialer.wires.listen(made, door.factory, BACKLOG))
            clock.start()
            gc.collect()
            gc.freeze()
            gc.set_threshold(GC_ALLOCATIONS, 20, 100)
            self._address = host_port(config.listen, self._orders.port)
            self._state, self._why = "ready", ""
            self._say()
            await self._stop.wait()
            self._state = "stopping"
            self._say()
            await self._finish(door)
        finally:
            for listener in self._listeners:
                listener.close()
            await self._close(door, clock)

    async def _finish(self, door: Door) -> None:
        """Accept nothing more, and wait for the calls that are out; tunnels have no end of their own."""
        door.stopping = True
        for listener in self._listeners:
            listener.close()
        door.pool.close()
        door.leave_idle()
        until = time.monotonic() + self._orders.egress.stop_ms / 1000
        while door.calls_out and time.monotonic() < until:
            await asyncio.sleep(LOOK_S)
        if door.calls_out:
            door.figures.reached["stop_ms"] += 1

    async def _close(self, door: Door, clock: Clock) -> None:
        """End what is open, write every effect, close the spool. Nothing is decided any more, so nothing is looked at."""
        door.stopping = True
        door.stop_calls()
        clock.stop()
        self._identify.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.sleep(0)  # what was written goes out, and cancelled tasks see it
        until = time.monotonic() + CLOSE_S
        while not (door.desk.retry() and door.write_counts()):
            if time.monotonic() > until:
                log.error("%d effects found no room: the host records their calls as lost", len(door.desk.waiting))
                self._spooler.abandon()
                return
            await asyncio.sleep(LOOK_S)
        try:
            self._spooler.close()
        except OSError as fault:  # a full disk: a dead door with nothing open
            log.error("the door cannot say that it is closed: %s", fault)

    # -- saying ------------------------------------------------------------------------------------------------------

    async def _keep_saying(self) -> None:
        while True:
            await asyncio.sleep(SAY_S)
            self._say()

    def _say(self) -> None:
        obeyed, door = self._obeyed, self._door
        said: dict[str, Any] = {
            "name": self._name, "pid": os.getpid(), "address": self._address, "state": self._state, "why": self._why,
            "socket": str(self._home.door_socket(self._name)) if self._listeners else "", "metrics": self._metrics,
            "host": self._orders.host, "boot": self._orders.boot,
            "calls": door.figures.allowed if door else 0, "refused": sum(door.figures.refused.values()) if door else 0,
            "tunnels": len(door.tunnels) if door else 0, "open": len(door.open) if door else 0,
            "epoch": obeyed.board.epoch if obeyed else 0,
            "policy_digest": (obeyed.matchers.policy or b"").hex() if obeyed else "",
            "standing": obeyed.standing.name.lower() if obeyed else "",
            "fault": "; ".join([one for one in (obeyed.matchers.fault, *self._identify.faults) if one]) if obeyed else "",
        }  # fmt: skip
        with contextlib.suppress(OSError):  # a full disk: whoever looks at the run file sees old figures
            write_run_file(self._home.run_file(self._name), said)


def _tcp_socket(listen: str, port: int) -> socket.socket:
    """One of several that share the port. Raises OperatorFault where it cannot be had."""
    made = socket.socket(socket.AF_INET6 if ":" in listen else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((listen, port))
    except OSError as fault:
        made.close()
        said = (fault.strerror or str(fault)).lower()
        raise OperatorFault(f"egress.listen: `{host_port(listen, port)}` cannot be listened on: {said}") from fault
    made.setblocking(False)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Be one door; returns the exit code."""
    leave_with_parent()
    os.umask(0o077)
    parser = argparse.ArgumentParser(prog="door", allow_abbrev=False)
    parser.add_argument("--home", required=True)
    args = parser.parse_args(argv)
    sys.setswitchinterval(SWITCH_S)
    try:
        orders = parse_orders(sys.stdin.buffer.readline())  # perhaps an hour later: until then we are the spare of our host
    except (ValueError, KeyError, TypeError, json.JSONDecodeError):
        return 0  # our host is gone
    setup_logging(orders.name)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_served(Home(Path(args.home)), orders))
    except WardlineError as fault:
        print(f"wardline: {fault}", file=sys.stderr)
        return OPERATOR
    except OSError as fault:
        where = f"{fault.filename}: " if fault.filename else ""
        print(f"wardline: {where}{(fault.strerror or str(fault)).lower()}", file=sys.stderr)
        return OPERATOR


async def _served(home: Home, orders: Orders) -> int:
    return await Server(home, orders).run()


if __name__ == "__main__":
    sys.exit(main())
