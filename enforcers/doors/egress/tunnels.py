"""The tunnels of one door together: how many each agent has, and the one tick that walks them all.

A tunnel has no task and no timer of its own while it is open. So ten thousand idle ones cost their memory, and in each tick a
look at one in ten of them.
"""

import asyncio
from typing import Any, Final, Protocol

from enforcers.doors.egress.dial import Dialer
from enforcers.doors.egress.metrics import Figures
from schemas.config import Egress

TICK_S: Final = 0.1
"""How often the door looks at tunnels that wait for their first bytes, and at one in ROUNDS of the open ones."""

ROUNDS: Final = 10


class Walked(Protocol):
    """What a tunnel is here."""

    agent: str
    round: int
    """Which of the rounds it is looked at in; less than 0: in none."""

    def no_bytes(self) -> None:
        """Its first bytes are not there in time."""

    def walk(self, now: float, now_ns: int, idle_s: float) -> None:
        """Once a second: record how far it is, end it if it is idle."""


class Holds(Protocol):
    """What `enforcers.doors.egress.door.Door` has for its tunnels."""

    @property
    def config(self) -> Egress:
        """The limits."""

    @property
    def figures(self) -> Figures:
        """What is counted."""

    @property
    def dialer(self) -> Dialer:
        """The way to origins."""

    @property
    def tunnels(self) -> "Tunnels":
        """All of this door."""

    @property
    def open(self) -> set[Any]:
        """Whatever is cut when the board says so: has an `exchange` and a `cut(reason)`."""

    def now_ns(self) -> int:
        """Nanoseconds since 1970."""


class Tunnels:
    """The tunnels of one door: how many each agent has, and the one tick that walks them."""

    def __init__(self, door: Holds) -> None:
        self.loop = asyncio.get_running_loop()
        """The door's. To ask which one runs is a system call, each time."""
        self._door = door
        self._count: dict[str, int] = {}
        self._early: dict[Walked, float] = {}
        """Those whose first bytes are waited for, oldest first, and until when."""
        self._rounds: tuple[set[Walked], ...] = tuple(set() for _ in range(ROUNDS))
        self._round = self._next = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return sum(self._count.values())

    def full(self, agent: str) -> bool:
        """Whether this agent has as many tunnels as it may have."""
        return self._count.get(agent, 0) >= self._door.config.tunnels_per_agent

    def add(self, tunnel: Walked) -> None:
        """Count a tunnel, and have it cut when it must be."""
        self._count[tunnel.agent] = self._count.get(tunnel.agent, 0) + 1
        self._door.open.add(tunnel)
        if self._timer is None:
            self._timer = self.loop.call_later(TICK_S, self._tick)

    def await_bytes(self, tunnel: Walked) -> None:
        """Its first bytes must be there within `header_ms`."""
        self._early[tunnel] = self.loop.time() + self._door.config.header_ms / 1000

    def have_bytes(self, tunnel: Walked) -> None:
        """They are."""
        self._early.pop(tunnel, None)

    def walk(self, tunnel: Walked) -> None:
        """Look at an open tunnel once a second from now on."""
        tunnel.round = self._next = (self._next + 1) % ROUNDS
        self._rounds[tunnel.round].add(tunnel)

    def remove(self, tunnel: Walked) -> None:
        """It is over."""
        self._door.open.discard(tunnel)
        self._early.pop(tunnel, None)
        if tunnel.round >= 0:
            self._rounds[tunnel.round].discard(tunnel)
        left = self._count.pop(tunnel.agent) - 1
        if left:
            self._count[tunnel.agent] = left

    def _tick(self) -> None:
        self._timer = self.loop.call_later(TICK_S, self._tick) if self._count else None
        now = self.loop.time()
        for tunnel in [one for one, until in self._early.items() if until <= now]:
            tunnel.no_bytes()
        self._round = (self._round + 1) % ROUNDS
        idle_s, now_ns = self._door.config.tunnel_idle_ms / 1000, self._door.now_ns()
        for tunnel in list(self._rounds[self._round]):
            tunnel.walk(now, now_ns, idle_s)
