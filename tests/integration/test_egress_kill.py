"""kill -9 of a door in full work: nothing that an origin saw is without a record, and its clients go on a moment later."""

import asyncio
import base64
import functools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.data import REPOSITORY
from tests.support.governed import AGENT, Governed
from tests.support.home import wait_until

TUNNELS = 50
REQUESTS = 1_000
BACK_S = 1.0
BACK_STARTS = 3
"""On a machine that is busy with something else: a new door within so many bare starts of its program, measured beside it."""
LIMITS = "connections_per_agent = 5000\nupstreams_per_agent_host = 3000\nheader_ms = 60000\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Governed]:
    with Governed(tmp_path_factory.mktemp("kill"), config=LIMITS, raw=True) as made:
        yield made


class Client:
    """One connection to the door, which asks for one thing and waits."""

    def __init__(self, trace: str, head: bytes) -> None:
        self.trace = trace
        self._head = head
        self.answer = b""

    async def ask(self, address: tuple[str, int], asked: "asyncio.Event | None" = None) -> bytes:
        """Send it; returns the head of the answer, or what came of it until the connection broke."""
        streams, writer = await asyncio.open_connection(*address)
        try:
            writer.write(self._head)
            if asked is not None:
                asked.set()
            self.answer = await streams.readuntil(b"\r\n\r\n")
            if b" 200 Connection" in self.answer:
                await streams.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
        return self.answer


def clients(site: Governed, first: int, requests: int, tunnels: int) -> list[Client]:
    login = base64.b64encode(f"{AGENT}:{site.secret}".encode()).decode()
    made = []
    for n in range(first, first + requests + tunnels):
        trace = f"{n + 1:032x}"
        host = site.http("www")
        line = f"GET http://{host}/hold?{n}" if n < first + requests else f"CONNECT {host}"
        head = (
            f"{line} HTTP/1.1\r\nhost: {host}\r\nproxy-authorization: Basic {login}\r\n"
            f"traceparent: 00-{trace}-00000000000000aa-01\r\n\r\n"
        )
        made.append(Client(trace, head.encode()))
    return made


def seen_traces(site: Governed) -> set[str]:
    """The traces of all requests that the origin has had."""
    return {one.all("traceparent")[0].split("-")[1] for one in site.origins.seen if one.path.startswith("/hold")}


def rows(site: Governed) -> list[tuple[str, str, str, str]]:
    wanted = "path = '/hold' OR action = 'http:CONNECT'"
    found = site.wardline.sql(f"SELECT trace_id, verdict, outcome, error FROM calls WHERE {wanted}")
    return [(str(a), str(b), str(c), str(d)) for a, b, c, d in found]


def back(site: Governed, old: int) -> bool:
    """Whether another door than the process `old` serves."""
    said = site.door()
    return said.get("state") == "ready" and said["pid"] != old


def test_a_door_that_is_killed_in_full_work_loses_nothing_and_is_back_within_a_second(site: Governed) -> None:
    host, _, port = site.address.rpartition(":")
    address = (host, int(port))
    before = site.wardline.pid("door-1")
    first = clients(site, 0, REQUESTS, TUNNELS)

    async def story() -> float:
        tasks = [asyncio.create_task(client.ask(address)) for client in first]
        deadline = time.monotonic() + 60
        while site.origins.held < REQUESTS or sum(b" 200 Connection" in one.answer for one in first) < TUNNELS:
            assert time.monotonic() < deadline, (site.origins.held, Counter(one.answer[:40] for one in first))
            await asyncio.sleep(0.02)
        # a few hundred more are on their way, in whatever state, when it dies
        more = clients(site, len(first), 300, 0)
        tasks += [asyncio.create_task(client.ask(address)) for client in more]
        await asyncio.sleep(0.02)
        os.kill(before, signal.SIGKILL)
        killed = time.monotonic()
        while True:
            if back(site, before):
                break
            assert time.monotonic() - killed < 30, site.wardline.said("enforce-1")
            await asyncio.sleep(0.01)
        took = time.monotonic() - killed
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
        return took

    took = asyncio.run(story())
    saw = seen_traces(site)
    assert len(saw) >= REQUESTS

    # clients come back, all of them, and are served
    site.origins.release()
    again = clients(site, 10_000, REQUESTS, 0)

    async def return_all() -> Counter[bytes]:
        answers = await asyncio.gather(*(client.ask(address) for client in again))
        return Counter(answer[:15] for answer in answers)

    assert asyncio.run(return_all()) == {b"HTTP/1.1 200 OK": REQUESTS}

    def settled() -> bool:
        found = rows(site)
        return len(found) >= len(saw) + TUNNELS + REQUESTS and not [one for one in found if not one[2]]

    wait_until(settled, 60, lambda: str(Counter(one[2] for one in rows(site))))
    found = rows(site)
    traces = Counter(one[0] for one in found)
    assert max(traces.values()) == 1, "each is there once"
    assert saw <= traces.keys(), "whatever the origin saw is there"
    by_trace = {one[0]: one for one in found}
    held = [client.trace for client in first]
    assert Counter(by_trace[trace][1:] for trace in held) == {("allow", "lost", "door died"): REQUESTS + TUNNELS}
    assert {by_trace[client.trace][2] for client in again} == {"ok"}
    assert site.wardline.sql("SELECT count() FROM gaps") == [(0,)]
    if took >= BACK_S:
        started = time.monotonic()
        subprocess.run([sys.executable, "-P", "-c", "import enforcers.doors.egress.run"], cwd=REPOSITORY, check=True)
        bare = time.monotonic() - started
        assert took < BACK_STARTS * bare, f"a new door was there after {took:.2f} s; its program starts in {bare:.2f} s here"


def test_a_door_is_replaced_as_often_as_it_dies_and_its_socket_is_the_next_ones(site: Governed) -> None:
    site.origins.release()
    for _ in range(3):
        old = site.wardline.pid("door-1")
        os.kill(old, signal.SIGKILL)
        wait_until(functools.partial(back, site, old), 10, "a new door")
        assert site.curl(f"http://{site.http('www')}/hold?again").stdout == "held\n"
        path = Path(str(site.door()["socket"]))
        assert path == site.wardline.home.door_socket("door-1")
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_host_that_is_killed_comes_back_with_its_doors_on_the_same_port(site: Governed) -> None:
    address, old = site.address, site.wardline.pid("door-1")
    pid = site.wardline.kill("enforce-1")
    wait_until(lambda: back(site, old), 40, lambda: f"the door of the new host is ready; {site.wardline.said('enforce-1')}")
    assert site.wardline.pid("enforce-1") != pid
    assert site.address == address
    assert site.curl(f"http://{site.http('www')}/hold?host").stdout == "held\n"
