"""scrypt in threads: is this the secret that has this stored hash? Costly on purpose, so who may ask is bounded.

    fits    the same question that is being answered already: the same answer
            another: it waits for its agent's turn; where too many wait, for one agent or in all, it is refused as `busy`

One check of each agent in turn, so that guesses at one name keep no other waiting. Who guesses at a name whose secret nobody
has shown yet does share that name's places with its owner, who is told to try again.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import re
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from enforcers.core.caller import BUSY, UNREADY, NoIdentity

log = logging.getLogger(__name__)

THREADS: Final = 2
"""Checks at a time; each needs 16 MiB with the parameters that `wardline agent add` uses."""

WAITING_PER_AGENT: Final = 4
WAITING: Final = 1024

BYTES_MAX: Final = 64 << 20
"""Memory of one check. A stored hash that asks for more, or for more than P_MAX rounds, proves nobody: it would hold up all."""

P_MAX: Final = 16
HASH_BYTES_MIN: Final = 16

_STORED: Final = re.compile(r"scrypt\$([0-9]{1,8})\$([0-9]{1,4})\$([0-9]{1,4})\$([^$]+)\$([^$]+)")


class Parameters(NamedTuple):
    """What a stored hash says (RFC 7914)."""

    n: int
    r: int
    p: int
    salt: bytes
    made: bytes


@lru_cache(1024)
def parameters(stored: str) -> Parameters | None:
    """Read `scrypt$N$R$P$SALT$HASH`; None where it proves nobody."""
    parts = _STORED.fullmatch(stored)
    if parts is None:
        return None
    n, r, p = int(parts[1]), int(parts[2]), int(parts[3])
    try:
        salt, made = _base64(parts[4]), _base64(parts[5])
    except (ValueError, binascii.Error):
        return None
    power = n > 1 and n & (n - 1) == 0
    small = r > 0 and 0 < p <= P_MAX and 128 * n * r <= BYTES_MAX
    return Parameters(n, r, p, salt, made) if power and small and len(made) >= HASH_BYTES_MIN else None


def _base64(text: str) -> bytes:
    return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)


def scrypt_fits(stored: str, password: str) -> bool:
    """Whether a password has this stored hash. May run in any thread: the interpreter is free meanwhile."""
    found = parameters(stored)
    if found is None:
        return False
    n, r, p, salt, made = found
    maxmem = 128 * r * (n + p + 2) + (1 << 20)
    given = hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, dklen=len(made), maxmem=maxmem)
    return hmac.compare_digest(given, made)


@dataclass(slots=True, eq=False)
class _Job:
    agent: str
    stored: str
    password: str
    mark: bytes
    done: "asyncio.Future[bool]"


class Scrypt:
    """One door's checks; asked by the thread of its event loop alone."""

    def __init__(self, threads: int = THREADS) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="scrypt")
        self._running = 0
        self._turns: dict[str, deque[_Job]] = {}
        """Agent -> its jobs that wait; the first agent's turn is next."""
        self._asked: dict[tuple[str, bytes], _Job] = {}

    async def fits(self, agent: str, stored: str, password: str, mark: bytes, claimed: str) -> bool:
        """Whether a password is an agent's; `mark` is what it is called, so that it need not be compared.

        Raises NoIdentity `busy` where too many wait.
        """
        job = self._asked.get((stored, mark))
        if job is None:
            if len(self._turns.get(agent, ())) >= WAITING_PER_AGENT or len(self._asked) >= WAITING + self._threads:
                raise NoIdentity(BUSY, "too many credentials are being checked: try again in a second", claimed)
            job = _Job(agent, stored, password, mark, asyncio.get_running_loop().create_future())
            self._asked[stored, mark] = job
            self._turns.setdefault(agent, deque()).append(job)
            self._next()
        return await asyncio.shield(job.done)

    def _next(self) -> None:
        """Begin as many as may run. Whose turn it was stands behind the others then."""
        while self._running < self._threads and self._turns:
            agent = next(iter(self._turns))
            waiting = self._turns.pop(agent)
            job = waiting.popleft()
            if waiting:
                self._turns[agent] = waiting
            self._running += 1
            task = asyncio.get_running_loop().run_in_executor(self._pool, scrypt_fits, job.stored, job.password)
            task.add_done_callback(self._ending(job))

    def _ending(self, job: _Job) -> Callable[["asyncio.Future[bool]"], None]:
        def done(made: "asyncio.Future[bool]") -> None:
            self._running -= 1
            del self._asked[job.stored, job.mark]
            if made.cancelled():
                _refuse(job)
            elif (fault := made.exception()) is not None:  # no memory for it: that lets nobody in
                log.error("scrypt: %r", fault)
                job.done.set_result(False)
            else:
                job.done.set_result(made.result())
            self._next()

        return done

    def close(self) -> None:
        """What waits is refused; what runs ends by itself."""
        for waiting in self._turns.values():
            for job in waiting:
                del self._asked[job.stored, job.mark]
                _refuse(job)
        self._turns.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _refuse(job: _Job) -> None:
    job.done.set_exception(NoIdentity(UNREADY, "this door is stopping: try again"))
