"""Workers on a real Kafka: they come, go, die, stop and clash in mid-load, and the table has each record once."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from schemas.ack import Ack
from tests.support.home import Wardline, wait_until
from tests.support.kafka import Kafka
from tests.support.site import Site

PARTITIONS = 4
CONFIG = "[worker]\nsession_timeout_ms = 6000\n"


class Load:
    """A host that sends a frame to every partition again and again, and now and then one twice, until it is told to stop."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.host = site.host
        self.sent = 0
        self.fault: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            while not self._stop.wait(0.05):
                frames = [(n, self.host.frame(20, n)) for n in range(PARTITIONS)]
                self.site.send([*frames, frames[self.sent % PARTITIONS]])
                self.sent += 1
        except BaseException as fault:
            self.fault = fault

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def check(self, seconds: float = 60) -> None:
        """Everything is stored, once, and the host has heard so."""
        assert self.fault is None, self.fault
        for partition in range(PARTITIONS):
            self.site.wait_frontier(self.host.lane(partition).text, self.sent, seconds)
        assert self.site.doubled() == []
        records = 20 * PARTITIONS * self.sent
        assert self.site.counts() == (records, records, PARTITIONS * self.sent, PARTITIONS * self.sent)


@pytest.fixture(scope="module")
def shared(kafka: Kafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Wardline(tmp_path_factory.mktemp("worker") / "home", kafka=kafka.address, config=CONFIG) as wardline:
        yield Site(wardline, workers=2)


@pytest.fixture
def site(shared: Site) -> Site:
    shared.begin()
    return shared


def partitions(site: Site, name: str) -> list[int]:
    found = site.figures(name)["partitions"]
    assert isinstance(found, list)
    return found


def start_again(site: Site, name: str) -> None:
    if site.worker(name).poll() is not None:
        site.wardline.start(name)


def test_two_workers_share_the_partitions_and_each_record_is_stored_once(site: Site) -> None:
    wait_until(lambda: len(partitions(site, "work-1")) == len(partitions(site, "work-2")) == 2, 30, "they share")
    with Load(site) as load:
        time.sleep(3)
    load.check()
    assert site.figures("work-1")["frames"]
    assert site.figures("work-2")["frames"]


def test_a_worker_that_is_killed_and_comes_back_costs_nothing(site: Site) -> None:
    with Load(site) as load:
        for _ in range(2):
            time.sleep(1)
            site.kill_worker("work-2")
            site.wardline.start("work-2")
    load.check()


@pytest.mark.soak
def test_a_worker_that_stays_away_is_replaced_by_the_other(site: Site) -> None:
    with Load(site) as load:
        time.sleep(1)
        site.kill_worker("work-2")
        wait_until(lambda: len(partitions(site, "work-1")) == PARTITIONS, 30, "the other has all")
        time.sleep(1)
        site.wardline.start("work-2")
        wait_until(lambda: len(partitions(site, "work-1")) == 2, 30, "they share again")
        assert site.wardline.stop("work-2") == 0
        wait_until(lambda: len(partitions(site, "work-1")) == PARTITIONS, 30, "the other has all")
        site.wardline.start("work-2")
    load.check()


def test_a_worker_that_was_stopped_past_its_session_stores_nothing_more(site: Site) -> None:
    with Load(site) as load:
        time.sleep(0.7)
        site.worker("work-2").send_signal(signal.SIGSTOP)
        wait_until(lambda: len(partitions(site, "work-1")) == PARTITIONS, 30, "the other has all")
        time.sleep(1)
        site.worker("work-2").send_signal(signal.SIGCONT)
        assert site.worker("work-2").wait(20) == 75
        site.wardline.start("work-2")
    load.check()


@pytest.mark.soak
def test_of_two_processes_with_one_slot_the_first_ends(site: Site, kafka: Kafka, tmp_path: Path) -> None:
    """On one machine a lock refuses it; on two, Kafka gives the slot to the later one, and the earlier leaves."""
    root = tmp_path / "home"
    with Wardline(root, kafka=kafka.address, config=CONFIG) as other:
        for folder in ("secrets", "trust", "keys"):
            (root / folder).symlink_to(site.home.root / folder)
        (root / "run").mkdir(mode=0o700)
        (root / "run" / "store.json").symlink_to(site.home.run_file("store"))
        with Load(site) as load:
            time.sleep(1)
            newcomer = other.popen("work", "--slot", "2", log="work-2")
            while site.worker("work-2").poll() is None:
                # a join of the earlier one that was under way may win for once: then a supervisor starts the later one again
                if newcomer.poll() is not None:
                    assert newcomer.returncode == 75
                    newcomer = other.popen("work", "--slot", "2", log="work-2")
                time.sleep(0.1)
            assert site.worker("work-2").returncode == 75
            other.wait_ready("work-2", newcomer)
            time.sleep(2)
            assert other.stop("work-2") == 0
        (root / "run" / "store.json").unlink()  # it is not this home's to end
        site.wardline.start("work-2")
    load.check()


@pytest.mark.soak
def test_a_broker_that_is_away_for_a_while_costs_nothing(site: Site, kafka: Kafka) -> None:
    host = site.host
    site.send([(n, host.frame(20, n)) for n in range(PARTITIONS)])
    kafka.pause()
    time.sleep(15)
    kafka.go_on()
    for _ in range(3):
        site.send([(n, host.frame(20, n)) for n in range(PARTITIONS)])
    for name in ("work-1", "work-2"):
        start_again(site, name)
    for partition in range(PARTITIONS):
        site.wait_frontier(host.lane(partition).text, 4)
    assert site.counts() == (320, 320, 16, 16)


def test_each_acknowledgement_is_stored_by_one_worker_and_by_the_other_when_that_one_is_gone(site: Site) -> None:
    host = site.host
    producer = Producer({"bootstrap.servers": site.broker(), "acks": "all"})

    def say(epoch: int) -> None:
        now = time.time_ns()
        ack = Ack(host=host.name, boot="00000001000000bb", state="ready", why="", epoch=epoch, counter=1, policy_digest="",
                  applied_ns=now, said_ns=now, lag_records=0)  # fmt: skip
        producer.produce("wardline.acks", ack.encode(host.key.sign), partition=0)
        assert producer.flush(30) == 0

    def stored() -> list[tuple[object, ...]]:
        return site.wardline.sql(f"SELECT epoch FROM wardline.acks WHERE host = '{host.name}' ORDER BY epoch")

    def readers() -> list[str]:
        return [name for name in ("work-1", "work-2") if site.figures(name)["acks"]]

    say(1)
    wait_until(lambda: stored() == [(1,)], 30, lambda: f"{stored()} {site.wardline.said('work-1')}")
    wait_until(readers, 5, "one of them has stored it")
    (first,) = readers()
    site.kill_worker(first)
    say(2)
    wait_until(lambda: stored() == [(1,), (2,)], 40, lambda: f"{stored()} {site.wardline.said('work-2')}")
    site.wardline.start(first)
    say(3)
    wait_until(lambda: stored() == [(1,), (2,), (3,)], 40, lambda: str(stored()))
    both = "SELECT epoch, count() FROM wardline.control FINAL GROUP BY epoch HAVING count() != 1"
    assert site.wardline.sql(both) == [], "both have seen every entry, and each is there once"
