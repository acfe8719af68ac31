"""What is noticed survives whatever ends: a worker between any two steps, and everything at once on a broker that forgets."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.frame import Frame
from schemas.process import read_run_file
from schemas.records import Verdict
from tests.support.frames import record
from tests.support.home import Wardline, wait_until
from tests.support.kafka import Kafka
from tests.support.site import Site

START_US = 1_700_006_400_000_000
REFUSALS = 24
PARTITIONS = 4


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Wardline(tmp_path / "home") as wardline:
        made = Site(wardline)
        made.begin()
        yield made


def refused(site: Site, agent: str, partition: int = 0) -> Frame:
    """An agent is refused more often in a few minutes than it can be by chance."""
    first = site.host._seq
    site.host._seq += REFUSALS
    said = {"agent": agent, "verdict": Verdict.DENY}
    calls = [
        record(first + n, **said, time=START_US + n * 1_000_000, resource=f'Host::"h{n}.example:443"')
        for n in range(1, REFUSALS + 1)
    ]
    return site.host.frame(calls, partition)


def found(site: Site) -> list[tuple[object, ...]]:
    return site.wardline.sql("SELECT agent, detector, state FROM findings WHERE detector = 'deny-burst' ORDER BY agent")


def told(site: Site) -> int:
    """Rows that were ever inserted for findings."""
    return int(site.wardline.sql("SELECT count() FROM wardline.findings_stored", user="writer")[0][0])


def store_and_die(site: Site, frame: Frame) -> None:
    """The worker stores a frame, and is killed before the broker has what is in it."""
    before = int(site.wardline.sql("SELECT count() FROM records")[0][0])
    wait_until(lambda: site.figures()["lag"] == 0, 30, "what came before is committed")
    site.wardline.sigstop("store")
    site.send([(0, frame)])
    wait_until(lambda: site.figures()["lag"] == 1, 30, "it has the frame")
    site.wardline.sigstop("broker")
    site.wardline.sigcont("store")
    stored = before + REFUSALS + 1
    wait_until(lambda: site.wardline.sql("SELECT count() FROM records") == [(stored,)], 30, "the frame is stored")
    time.sleep(0.5)
    site.kill_worker()


def test_what_a_worker_stored_and_did_not_say_is_found_by_the_next_one_once(site: Site) -> None:
    site.send([(1, refused(site, "clerk", 1))])
    wait_until(lambda: found(site) == [("clerk", "deny-burst", "open")], 20, lambda: str(found(site)))
    store_and_die(site, refused(site, "planner"))
    assert [agent for agent, *_ in found(site)] == ["clerk"]
    site.wardline.sigcont("broker")
    site.wardline.start("work-1")
    both = [("clerk", "deny-burst", "open"), ("planner", "deny-burst", "open")]
    wait_until(lambda: found(site) == both, 30, lambda: f"{found(site)} {site.wardline.said('work-1')}")


@pytest.mark.soak
def test_everything_may_die_at_that_moment_and_the_broker_forget(site: Site) -> None:
    site.send([(1, refused(site, "clerk", 1))])
    wait_until(lambda: found(site) == [("clerk", "deny-burst", "open")], 20, lambda: str(found(site)))
    store_and_die(site, refused(site, "researcher"))
    site.wardline.kill("broker")
    for name in ("control", "store"):
        site.wardline.kill(name)
    for name in ("broker", "store", "control", "work-1"):
        site.wardline.start(name)
    both = [("clerk", "deny-burst", "open"), ("researcher", "deny-burst", "open")]
    wait_until(lambda: found(site) == both, 30, lambda: f"{found(site)} {site.wardline.said('work-1')}")
    rows = told(site)
    site.restart()
    wait_until(lambda: len(looked_after(site)) == PARTITIONS, 30, lambda: site.wardline.said("work-1"))
    assert (found(site), told(site), rows) == (both, rows, len(both)), "what is stored is not said again"


def looked_after(site: Site, name: str = "work-1") -> list[int]:
    """The partitions of aggregates whose detectors know their past."""
    said = read_run_file(site.home.run_file(name)) or {}
    return list(said.get("lookout", {}).get("partitions", []))


@pytest.mark.soak
def test_two_workers_on_a_kafka_find_each_thing_once_while_they_come_and_go(kafka: Kafka, tmp_path: Path) -> None:
    with Wardline(tmp_path / "home", kafka=kafka.address) as wardline:
        site = Site(wardline, workers=2)
        site.begin()
        agents = [f"agent-{n:02}" for n in range(40)]
        for n, agent in enumerate(agents):
            site.send([(n % PARTITIONS, refused(site, agent, n % PARTITIONS))])
            if n % 8 == 3:
                name = f"work-{1 + n // 8 % 2}"
                site.kill_worker(name)
                wardline.start(name)
            time.sleep(0.2)
        wanted = [(agent, "deny-burst", "open") for agent in agents]
        wait_until(lambda: found(site) == wanted, 90, lambda: f"{found(site)} {wardline.said('work-1')}")
        wait_until(lambda: sorted(looked_after(site, "work-1") + looked_after(site, "work-2")) == list(range(PARTITIONS)), 60,
                   lambda: f"{looked_after(site, 'work-1')} {looked_after(site, 'work-2')}")  # fmt: skip
        time.sleep(2)
        twice = "SELECT id, version FROM wardline.findings_stored GROUP BY id, version HAVING count() > 1"
        assert wardline.sql(twice, user="writer") == []
        assert wardline.stop("work-1") == 0
        site.send([(0, refused(site, "late", 0))])
        wait_until(lambda: ("late", "deny-burst", "open") in found(site), 60, lambda: wardline.said("work-2"))
