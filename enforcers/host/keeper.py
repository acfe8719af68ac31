"""The egress doors of a host, kept alive: started with the host, started again when they die, stopped before it stops.

    port bound -> names claimed -> each: spawned -> says `ready` -> dies -> spawned again ...
                                         \\-> says in 30 s nothing: killed      \\-> at its start again and again: waits longer

They are processes of the host's own group and leave within two seconds when it is gone. What a dead one recorded is sealed
from its spool as that of any door.
"""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from prometheus_client import Counter

from enforcers.doors.egress.orders import Orders
from enforcers.doors.names import claim_name
from schemas.config import Config
from schemas.errors import OperatorFault
from schemas.home import Home
from schemas.process import OPERATOR, Lock, last_line, port_problem, private_dir, read_run_file, rotate
from schemas.records import make_boot
from schemas.vocabulary import host_port

log = logging.getLogger(__name__)

LOOK_S: Final = 0.05
"""How often the doors are looked after: a dead one is found within this, and another one starts at once."""

READY_S: Final = 30.0
"""How long a door may take until it listens; then it is killed. So may one whose run file is another process's."""

AGAIN_S: Final = 1.0
"""How often the run file of a door that listens is read: nothing but READY_S hangs on it then."""

QUICK_S: Final = 5.0
"""A door that dies this soon after its start, or before it listens, is started again at once the first time; the next times
after DELAY_FIRST_S, doubling, DELAY_MAX_S at most. One that somebody must put right is tried again after DELAY_MAX_S."""

DELAY_FIRST_S: Final = 0.25
DELAY_MAX_S: Final = 5.0

TRIES: Final = 3
"""Starts without a `ready` until a door counts as failed, with its last words, and its host does not wait for it any more."""

STOP_S: Final = 2.0
"""How long a door may take to stop beyond `egress.stop_ms`; then it is killed."""

PORT_WAIT_S: Final = 10.0
"""How long the port may be in use when the host starts: the doors of one that was killed leave within two seconds."""

WHY_CHARS_MAX: Final = 300
LOG_LOOK_S: Final = 5.0

STARTS = Counter("wardline_host_door_starts", "Door processes that were given their orders")

Command: TypeAlias = Callable[[Home], list[str]]


def door_command(home: Home) -> list[str]:
    """What is executed. -P: a current folder that happens to have a `schemas` in it must not lend us its modules."""
    return [sys.executable, "-P", "-m", "enforcers.doors.egress.run", "--home", str(home.root)]


class _Process:
    """A door process that waits for its orders, with what it prints in a file of its own."""

    def __init__(self, command: list[str], log_file: Path) -> None:
        """Raises OSError when the system has no process or no memory left."""
        self.log = log_file
        private_dir(log_file.parent)
        try:
            output = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as fault:  # a full disk: better a door without a log than a log without a door
            log.warning("%s: cannot be opened: %s", log_file, fault.strerror)
            output = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            self.popen = subprocess.Popen(
                command, env=os.environ | {"WARDLINE_PARENT": str(os.getpid())}, stdin=subprocess.PIPE, stdout=output,
                stderr=output, bufsize=0,
            )  # fmt: skip
        finally:
            os.close(output)

    def order(self, orders: Orders, log_file: Path) -> None:
        """Have it be the door that `orders` describe, and its log that door's; the log of the one before is kept beside."""
        with contextlib.suppress(OSError):
            os.replace(log_file, log_file.with_name(f"{log_file.name}.1"))
        with contextlib.suppress(OSError):
            os.replace(self.log, log_file)
        STARTS.inc()
        assert self.popen.stdin is not None
        with contextlib.suppress(OSError):  # it has ended, which the next look finds
            self.popen.stdin.write(orders.encode())
            self.popen.stdin.close()

    def kill(self) -> None:
        """End it, and its log with it."""
        self.popen.kill()
        self.popen.wait()
        assert self.popen.stdin is not None
        self.popen.stdin.close()
        self.log.unlink(missing_ok=True)


class _Door:
    """One door and the process that it is now."""

    def __init__(self, home: Home, name: str, claim: Lock) -> None:
        self.name = name
        self.claim = claim
        self.process: subprocess.Popen[bytes] | None = None
        self.ready = False
        """Whether this process has said that it listens."""
        self.why = ""
        """What became of the one before, until one is ready."""
        self.failed = False
        """Whether nobody should wait for it: `why` says what is in the way."""
        self.due = 0.0
        self.log = home.log / f"{name}.log"
        self._home = home
        self._started = 0.0
        self._quick = 0
        """Deaths soon after the start, in a row."""
        self._misses = 0
        """Processes that never listened, in a row."""
        self._silent = 0.0
        """Since when its run file is not its own."""

    def start(self, process: _Process, orders: Orders) -> None:
        """Be this process from now on."""
        process.order(orders, self.log)
        self.process, self.ready = process.popen, False
        self._started = self._silent = time.monotonic()

    def look(self, now: float) -> None:
        """Find out whether it lives and listens; kill one that does not come."""
        assert self.process is not None
        code = self.process.poll()
        if code is not None:
            self._died(code, now)
            return
        if self.ready and now - self._silent < AGAIN_S:
            return
        said = read_run_file(self._home.run_file(self.name)) or {}
        if said.get("pid") == self.process.pid and said.get("state") == "ready":
            self._silent = now
            if not self.ready:
                self.ready, self.failed, self.why, self._misses = True, False, "", 0
        if now - self._silent > READY_S:
            self.process.kill()
            self.process.wait()
            self._died(0, now, f"was not ready for {READY_S:.0f} s and was killed")
            self.failed = True

    def _died(self, code: int, now: float, how: str = "") -> None:
        self.process = None
        how = how or (f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}")
        words = last_line(self.log).removeprefix("wardline: ")[:WHY_CHARS_MAX] if code > 0 else ""
        self._quick = self._quick + 1 if now - self._started < QUICK_S or not self.ready else 0
        self._misses = 0 if self.ready else self._misses + 1
        later = min(DELAY_MAX_S, DELAY_FIRST_S * 2 ** min(self._quick - 2, 16)) if self._quick > 1 else 0.0
        self.due = now + (DELAY_MAX_S if code == OPERATOR else later)
        self.why = words if code == OPERATOR and words else f"{how}: {words}" if words else how
        self.failed = self.failed or code == OPERATOR or self._misses >= TRIES
        self.ready = False
        log.error("%s %s%s; starting it again in %.1f s", self.name, how, f": {words}" if words else "", self.due - now)

    def said(self) -> dict[str, Any]:
        """Of this door, for the host's run file."""
        state = "ready" if self.ready else "failed" if self.failed else "starting"
        return {"name": self.name, "pid": self.process.pid if self.process else None, "state": state, "why": self.why}

    def stop(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.send_signal(signal.SIGCONT)  # one that is stopped could not hear


class Keeper:
    """`doors` egress doors of one host, on one port."""

    def __init__(
        self, home: Home, config: Config, host: str, *, doors: int, port: int, command: Command = door_command
    ) -> None:
        """`port` 0 takes the one of the last start where that is free, else any free one."""
        self.address = ""
        """HOST:PORT of the proxy, as soon as it is bound; empty without doors."""
        self._home = home
        self._config = config
        self._host = host
        self._wanted = doors
        self._port = port
        self._command = command
        self._socket: socket.socket | None = None
        self._doors: list[_Door] = []
        self._before = _port_before(home, host)
        self._stopping = False
        self._rotated = 0.0
        self._spare: _Process | None = None
        self._spare_due = 0.0
        self._launched = 0

    async def bind(self) -> None:
        """Take the port and the names. Raises OperatorFault naming what is in the way.

        The socket is bound and never listens: it keeps the port for doors that come and go, and no client waits at it.
        """
        if not self._wanted:
            return
        listen = self._config.egress.listen
        try:
            address = ipaddress.ip_address(listen)
        except ValueError as fault:
            raise OperatorFault(f"egress.listen: `{listen}` is no address, such as 127.0.0.1 or ::1") from fault
        if not self._port and self._before and port_problem(listen, self._before) is None:
            self._port = self._before
        deadline = time.monotonic() + PORT_WAIT_S
        while self._port and (problem := port_problem(listen, self._port)) is not None:
            if time.monotonic() > deadline or problem.errno != errno.EADDRINUSE:
                what = (problem.strerror or str(problem)).lower()
                raise OperatorFault(
                    f"egress.port: {self._port} of {listen} cannot be taken: {what}; end whoever listens there, or choose"
                    " another (egress.port, egress.listen, --egress-port)"
                ) from problem
            await asyncio.sleep(LOOK_S)
        self._socket = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._socket.bind((listen, self._port))
        self._port = self._socket.getsockname()[1]
        self.address = host_port(listen, self._port)
        for left in self._home.log.glob(f".{self._host}-*.log"):  # of processes that never were doors
            left.unlink(missing_ok=True)
        self._doors = [_Door(self._home, *claim_name(self._home, leaving=True)) for _ in range(self._wanted)]

    async def run(self) -> None:
        """Keep them alive until `stop`; does not end by itself."""
        while True:
            if not self._stopping:
                self._tick(time.monotonic())
            await asyncio.sleep(LOOK_S)

    def _tick(self, now: float) -> None:
        for door in self._doors:
            if door.process is not None:
                door.look(now)
            if door.process is None and now >= door.due:
                self._start(door, now)
        self._keep_spare(now)
        if now - self._rotated > LOG_LOOK_S:
            self._rotated = now
            for door in self._doors:
                rotate(door.log)

    def _start(self, door: _Door, now: float) -> None:
        orders = Orders(
            host=self._host, name=door.name, boot=f"{make_boot(int(time.time()), secrets.randbits(32)):016x}", port=self._port,
            own=own_servers(self._config), egress=self._config.egress, enforcer=self._config.enforcer,
            issuers=self._config.issuer,
        )  # fmt: skip
        if self._spare is not None and self._spare.popen.poll() is not None:
            self._spare.kill()
            self._spare = None
        process, self._spare = self._spare, None
        if process is None:
            try:
                process = self._launch()
            except OSError as fault:
                door.why, door.due = f"cannot be started: {fault.strerror}", now + DELAY_MAX_S
                log.error("%s %s; trying again in %.0f s", door.name, door.why, DELAY_MAX_S)
                return
        door.start(process, orders)

    def _launch(self) -> _Process:
        self._launched += 1
        return _Process(self._command(self._home), self._home.log / f".{self._host}-{self._launched}.log")

    def _keep_spare(self, now: float) -> None:
        """Have one process more, once all doors listen: it must not slow their start."""
        if self._spare is not None and self._spare.popen.poll() is not None:
            self._spare.kill()
            self._spare, self._spare_due = None, now + DELAY_MAX_S
        if self._spare is None and now >= self._spare_due and self._doors and all(door.ready for door in self._doors):
            try:
                self._spare = self._launch()
            except OSError as fault:  # the next death of a door says more
                self._spare_due = now + DELAY_MAX_S
                log.warning("no spare door: %s", fault.strerror)

    @property
    def settled(self) -> bool:
        """Whether each door listens, or has failed for a reason that it says."""
        return all(door.ready or door.failed for door in self._doors)

    def said(self) -> dict[str, Any]:
        """For the host's run file."""
        return {"proxy": self.address, "doors": [door.said() for door in self._doors]}

    async def stop(self) -> None:
        """Let each finish the calls that are out, `egress.stop_ms` and STOP_S at most; then it is killed."""
        self._stopping = True
        for door in self._doors:
            door.stop(signal.SIGTERM)
        deadline = time.monotonic() + self._config.egress.stop_ms / 1000 + STOP_S
        while any(door.process is not None and door.process.poll() is None for door in self._doors):
            if time.monotonic() > deadline:
                for door in self._doors:
                    if door.process is not None and door.process.poll() is None:
                        log.error("%s does not stop and is killed: what it had open is recorded as lost", door.name)
                        door.stop(signal.SIGKILL)
                        door.process.wait()
                break
            await asyncio.sleep(LOOK_S)
        self.close()

    def close(self) -> None:
        """Kill what lives, and let go of names and port."""
        if self._spare is not None:
            self._spare.kill()
            self._spare = None
        for door in self._doors:
            if door.process is not None:
                door.stop(signal.SIGKILL)
                door.process.wait()
                _forget(self._home.run_file(door.name), door.process.pid)
                door.process = None
            door.claim.release()
        self._doors = []
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def own_servers(config: Config) -> tuple[str, ...]:
    """`HOST:PORT` of Kafka, ClickHouse and control, as the configuration has them: no call may ever reach those."""
    found = [part.strip() for part in config.kafka.servers.split(",") if part.strip()]
    if config.control.listen:
        found.append(config.control.listen)
    for url, plain, secure in ((config.clickhouse.url, 8123, 8443), (config.control.url, 80, 443)):
        if url:
            parts = urlsplit(url)
            found.append(host_port(str(parts.hostname), parts.port or (secure if parts.scheme == "https" else plain)))
    return tuple(dict.fromkeys(found))


def _port_before(home: Home, host: str) -> int:
    """The port that the last process of this host said it had, 0 for none: its clients still try it."""
    port = str((read_run_file(home.run_file(host)) or {}).get("proxy", "")).rpartition(":")[2]
    return int(port) if port.isdigit() else 0


def _forget(path: Path, pid: int) -> None:
    """Remove the run file of a process of ours that was killed."""
    if (read_run_file(path) or {}).get("pid") == pid:
        path.unlink(missing_ok=True)
