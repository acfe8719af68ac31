"""Wardline whole, as the arm beside the peers: `wardline up --doors N` on a home of its own, and agents that may reach origins.

The policies are as many as the peers have hosts on their lists, and one more for the origin's name. Of everything that runs,
only the host and its doors stand between a client and the origin; they are bound to the processor that is measured, the rest to
the other one.
"""

import base64
import contextlib
import hashlib
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from benchmarks.peers.programs import HOSTS
from benchmarks.wire.tools import ENDS, MEASURED, family, pin, tasks
from pipeline.cli.agent import make_secret, scrypt_of
from pipeline.shells.controlclient import Change, Control
from schemas.config import load_config
from schemas.process import read_run_file
from tests.support.home import Wardline, wait_until

AGENT: Final = "bench"
HOST: Final = "enforce-1"
ADDED_AT_ONCE: Final = 16
READY_S: Final = 60.0
SAID_S: Final = 0.7
"""A host has looked at its doors' spools, and said so, within this."""

NICE: Final = 15
"""Of the worker and the store beside the two ends, which answer at once: they store what is recorded when there is time."""



class Site:
    """One home with everything running, until the block ends."""

    def __init__(
        self, root: Path, origins: Iterable[int], *, doors: int = 1, config: str = "", egress: str = "", pinned: bool = True,
        agents: Iterable[str] = (AGENT,), extra: str = "",
    ) -> None:
        """`config` and `egress` are more lines of the configuration, the latter of its section; `extra` is more policies."""
        self.doors = doors
        self.secrets: dict[str, str] = {}
        self._agents = tuple(agents)
        self._pinned = pinned
        self._epoch = 0
        ports = list(origins)
        networks = [f'"{net}:{port}"' for port in ports for net in ("127.0.0.0/8", "::1/128")]
        lines = f"{config}\n[egress]\nallow_addresses = [{', '.join(networks)}]\n{egress}\n"
        self.home = Wardline(root, config=lines)
        self.home.write_policies(policies(ports) + extra)

    def __enter__(self) -> "Site":
        try:
            self._start()
        except BaseException:
            self.home.close()
            raise
        return self

    def _start(self) -> None:
        self.home.up("--doors", str(self.doors))
        self.control = Control(self.home.home, load_config(self.home.home.config))
        for agent in self._agents:
            self.add(agent)
        self.applied(self._epoch)
        if self._pinned:
            self.pin()

    def pin(self) -> None:
        """Bind the host and its doors to one processor, and all others to the other."""
        enforcers = self.pids()
        pin(set(family(self.home.pid("up"))) - set(enforcers), ENDS)
        pin(enforcers, MEASURED)
        for name in ("work-1", "store"):
            for task in tasks(self.home.pid(name)):
                os.setpriority(os.PRIO_PROCESS, task, NICE)

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self.home.close()

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """Hold the worker and the store: what is recorded waits in Kafka meanwhile.

        They stand on other machines than a door's; here they would take the time of the two ends, and a door that waits for
        those pays for each of its turns what a busy one pays for several.
        """
        held = [self.home.pid(name) for name in ("work-1", "store")]
        for pid in held:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in held:
                os.kill(pid, signal.SIGCONT)

    # -- agents and control ------------------------------------------------------------------------------------------

    def add(self, agent: str, hashed: Callable[[str, bytes], str] = scrypt_of) -> Change:
        """Add an agent, as `wardline agent add` does."""
        self.secrets[agent] = make_secret()
        secret = hashed(self.secrets[agent], secrets.token_bytes(16))
        change = self.control.change("agent-add", name=agent, secret=secret, owner="bench", subs=[], spiffe=[])
        self._epoch = max(self._epoch, change.epoch)
        return change

    def add_many(self, agents: Sequence[str]) -> None:
        """Add agents, several at a time: each is one change of control, and one write to its disk."""
        with ThreadPoolExecutor(ADDED_AT_ONCE) as pool:
            list(pool.map(lambda agent: self.add(agent, cheap_scrypt), agents))
        self.applied(self._epoch)

    def auth(self, agent: str = AGENT) -> str:
        """The value of Proxy-Authorization."""
        return "Basic " + base64.b64encode(f"{agent}:{self.secrets[agent]}".encode()).decode()

    def applied(self, epoch: int, wait_s: float = 10.0) -> dict[str, Any]:
        """What control says of who obeys an epoch; fails when somebody does not."""
        deadline = time.monotonic() + READY_S
        while True:
            answer: dict[str, Any] = self.control.ask("/acks", epoch=epoch, policy="", wait_s=wait_s)
            hosts = [host for host in answer["hosts"] if host["expected"]]
            if hosts and all(host["applied"] and len(host["doors"]) == self.doors for host in hosts):
                return answer
            assert time.monotonic() < deadline, f"epoch {epoch} is not obeyed by all: {answer}"
            time.sleep(0.05)

    # -- processes ---------------------------------------------------------------------------------------------------

    def door(self, number: int = 1) -> dict[str, Any]:
        """What a door says of itself, once it is ready."""

        def look() -> dict[str, Any]:
            said = read_run_file(self.home.home.run_file(f"door-{number}"))
            return said if said is not None and said["alive"] and said.get("state") == "ready" else {}

        return dict(wait_until(look, READY_S, lambda: f"door-{number} is ready: {self.home.said(f'door-{number}')}"))

    @property
    def proxy(self) -> str:
        """HOST:PORT of the doors."""
        return str(self.door()["address"])

    def socket(self, number: int) -> str:
        """Where one door alone listens, as `load.c` has it."""
        return f"unix:{self.home.home.door_socket(f'door-{number}')}"

    def door_pids(self) -> list[int]:
        """The doors."""
        return [int(self.door(number)["pid"]) for number in range(1, self.doors + 1)]

    def pids(self) -> list[int]:
        """The host and its doors: what stands between a client and the origin."""
        return family(self.home.pid(HOST))

    @property
    def host_pid(self) -> int:
        """The host alone."""
        return self.home.pid(HOST)

    def quiet(self, seconds: float = 120) -> None:
        """Wait until everything that was recorded is stored."""
        time.sleep(SAID_S)
        self.home.wait_stored(seconds)

    def stored_ids(self) -> set[int]:
        """The N of every `/id/N` in the store, of calls that were let out."""
        rows = self.home.sql("SELECT toUInt64(substring(path, 5)) FROM calls"
                             " WHERE startsWith(path, '/id/') AND verdict = 'allow'")  # fmt: skip
        return {int(number) for (number,) in rows}


def policies(ports: Iterable[int]) -> str:
    """A permit for each host of the peers' lists, and those for the origin."""
    lines = []
    for port in ports:
        lines += [
            f'@id("service-{number}")\npermit (principal, action in Action::"http", resource == '
            f'Host::"service-{number}.example.com:{port}");' for number in range(HOSTS)
        ]  # fmt: skip
        lines.append(
            f'@id("origin-{port}")\npermit (principal, action in [Action::"http", Action::"tcp:CONNECT"], resource == '
            f'Host::"localhost:{port}");'
        )
    return "\n".join(dict.fromkeys(lines)) + "\n"


def cheap_scrypt(secret: str, salt: bytes) -> str:
    """As `scrypt_of`, with the least work: for a thousand agents whose secrets nobody guesses here."""
    made = hashlib.scrypt(secret.encode(), salt=salt, n=2, r=1, p=1, dklen=32)
    return "$".join(("scrypt", "2", "1", "1", *(base64.b64encode(part).decode() for part in (salt, made))))


def files() -> int:
    """How many descriptors a process here may have."""
    import resource

    return min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], int(os.sysconf("SC_OPEN_MAX")) or 1 << 20)
