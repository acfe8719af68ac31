"""The worker and control, as processes on the embedded broker: who is registered counts, and what was said is in the views."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import Producer

from pipeline.shells.controlclient import Change, Control
from pipeline.shells.worker.registry import registry_file
from schemas.ack import Ack, DoorAck
from schemas.config import load_config
from schemas.home import Home
from schemas.keys import own_key
from tests.support.frames import HOST_BOOT, Host
from tests.support.home import Wardline, wait_until
from tests.support.site import Site

ACKS = "wardline.acks"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Wardline(tmp_path_factory.mktemp("worker-control") / "home") as wardline:
        yield Site(wardline)


@pytest.fixture
def site(shared: Site) -> Site:
    shared.begin()
    return shared


def change(home: Home, do: str, **fields: Any) -> Change:
    return Control(home, load_config(home.config)).change(do, **fields)


def revoke(home: Home, name: str, *, for_s: int = 0) -> Change:
    return change(home, "revoke", kind="agent", name=name, cascade=False, reason="it leaks", for_s=for_s, not_before_s=0)


def unrevoke(home: Home, name: str) -> Change:
    return change(home, "unrevoke", kind="agent", name=name, cascade=False)


def revocations(site: Site, name: str) -> list[tuple[Any, ...]]:
    return site.wardline.sql(f"SELECT state, reason FROM wardline.revocations WHERE name = '{name}' ORDER BY epoch")


def wait_revocations(site: Site, name: str, *states: str, seconds: float = 20) -> None:
    wait_until(lambda: [state for state, _ in revocations(site, name)] == list(states), seconds,
               lambda: f"{revocations(site, name)} {site.wardline.said('work-1')}")  # fmt: skip


def said_by(host: Host, epoch: int, *doors: DoorAck, state: str = "ready", boot: str = "00000001000000bb") -> Ack:
    now = time.time_ns()
    return Ack(host=host.name, boot=boot, state=state, why="", epoch=epoch, counter=1, policy_digest="", applied_ns=now,
               said_ns=now, lag_records=0, doors=doors)  # fmt: skip


def door(number: int, epoch: int) -> DoorAck:
    return DoorAck(boot=f"00000001{number:08x}", epoch=epoch, policy_digest="", applied_ns=time.time_ns())


def publish(site: Site, *acks: tuple[Host, Ack]) -> None:
    producer = Producer({"bootstrap.servers": site.broker(), "acks": "all"})
    for host, ack in acks:
        producer.produce(ACKS, ack.encode(host.key.sign), partition=0)
    assert producer.flush(30) == 0


def acks(site: Site) -> list[tuple[Any, ...]]:
    return site.wardline.sql(
        f"SELECT door, epoch, state FROM wardline.acks WHERE host = '{site.host.name}' ORDER BY said, door, state"
    )


def test_a_host_that_registers_and_sends_at_once_is_stored(site: Site) -> None:
    """Its entry is in the log before its first frame, and the worker may not have read it yet."""
    for number in range(5):
        late = site.host = Host(f"late-{number}", boot=HOST_BOOT + 500 + number)
        key = late.key.public_key().public_bytes_raw().hex()
        change(site.home, "enforcer-add", name=late.name, key=key)
        site.send([(0, late.frame(3))])
        site.wait_frontier(late.lane(0).text, 1)
    assert site.letters() == []


def test_a_host_that_was_removed_stores_nothing_more_whatever_is_restarted(site: Site) -> None:
    host, other = site.host, Host("other", boot=HOST_BOOT + 900, key=own_key(site.home, "hosts", "other"))
    site.register(other)
    first = host.frame(5)
    site.send([(0, first)])
    site.wait_frontier(host.lane(0).text, 1)
    change(site.home, "enforcer-remove", name=host.name)
    wait_until(lambda: host.name not in registry_file(site.home, "work-1").read_text().partition("former")[0], 10, "it heard")
    second = host.frame(5)
    site.send([(0, second)])
    wait_until(lambda: len(site.letters()) == 1, 20, lambda: str(site.letters()))
    assert site.letters() == [("key", 0, len(second.wire), "new")]

    # the same broker, another worker: it reads everything again, and knows what was stored
    before = site.letters()
    site.restart()
    site.send([(0, first)])
    wait_until(lambda: site.figures()["duplicates"], 20, lambda: str(site.figures()))
    assert site.letters() == before

    # the broker has forgotten, control is away: the last registry counts
    for name in ("work-1", "control", "broker"):
        site.wardline.kill(name)
    site.wardline.start("broker")
    site.wardline.start("work-1")
    third = host.frame(5)
    site.send([(0, third), (0, other.frame(2))])
    site.wait_frontier(other.lane(0).text, 1)
    assert site.figures()["put_off"] == 1, "it may be registered again in what cannot be read"
    assert site.counts() == (5, 5, 1, 1)

    # and control says the same again
    site.wardline.start("control")
    wait_until(lambda: dict(site.figures()["control"])["synced"], 20, lambda: str(site.figures()))  # type: ignore[call-overload]
    site.send([(0, third)])
    wait_until(lambda: len(site.letters()) == 2, 20, lambda: str(site.letters()))
    assert site.counts() == (5, 5, 1, 1)


def test_what_was_revoked_and_how_it_ended_is_in_the_views_also_when_the_worker_was_away(site: Site) -> None:
    revoke(site.home, "stays")
    revoke(site.home, "lifted")
    revoke(site.home, "expires", for_s=1)
    unrevoke(site.home, "lifted")
    wait_revocations(site, "stays", "live")
    wait_revocations(site, "lifted", "lifted")
    wait_revocations(site, "expires", "expired")
    ((by, reason),) = site.wardline.sql("SELECT by, reason FROM wardline.revocations WHERE name = 'stays'")
    assert str(by).startswith("uid:")
    assert reason == "it leaks"

    revoke(site.home, "goes")
    wait_revocations(site, "goes", "live")
    site.wardline.kill("work-1")
    unrevoke(site.home, "goes")
    revoke(site.home, "comes")
    for name in ("control", "broker"):
        site.wardline.kill(name)
    for name in ("broker", "control", "work-1"):
        site.wardline.start(name)
    wait_revocations(site, "comes", "live")
    wait_revocations(site, "goes", "lifted")
    wait_revocations(site, "stays", "live")
    doubled = "SELECT journal, epoch, count() FROM wardline.control FINAL WHERE actor != '' GROUP BY ALL HAVING count() > 1"
    assert site.wardline.sql(doubled) == []
    assert site.wardline.sql("SELECT max(journal) FROM wardline.control") == [(1,)]


def test_no_secret_of_an_agent_is_in_the_store(site: Site) -> None:
    secret = "scrypt$16384$8$1$cGxhbnRlZHBsYW50ZWQ=$cGxhbnRlZHBsYW50ZWRwbGFudGVkcGxhbnRlZDEyMzQ="
    epoch = change(site.home, "agent-add", name="hidden", owner="somebody", secret=secret, subs=[], spiffe=[]).epoch
    wait_until(lambda: site.wardline.sql(f"SELECT 1 FROM wardline.control WHERE epoch >= {epoch}"), 20, "it is stored")
    ((value,),) = site.wardline.sql("SELECT value FROM wardline.control FINAL WHERE key = 'agent/hidden'")
    assert "somebody" in str(value)
    assert "scrypt" not in str(value)


def test_who_has_acknowledged_what_is_in_the_views_once(site: Site) -> None:
    host = site.host
    epoch = revoke(site.home, f"by-{host.name}").epoch
    publish(
        site, (host, said_by(host, epoch - 1, door(1, epoch - 1), door(2, epoch - 1))),
        (Host(host.name), said_by(host, epoch, door(1, epoch), door(2, epoch))), (Host("nobody"), said_by(Host("nobody"), 1)),
    )  # fmt: skip
    wait_until(lambda: len(acks(site)) == 3, 20, lambda: f"{acks(site)} {site.wardline.said('work-1')}")
    again = said_by(host, epoch, door(1, epoch), door(2, epoch - 1))
    publish(site, (host, again), (host, dataclasses.replace(again, said_ns=again.said_ns + 1000)))
    wait_until(lambda: len(acks(site)) >= 5, 20, lambda: str(acks(site)))
    one, two = door(1, 0).boot, door(2, 0).boot
    ((applied, waiting, slow),) = site.wardline.sql(
        f"SELECT applied, waiting, door FROM wardline.epochs WHERE epoch = {epoch} AND actor != ''"
    )
    assert (applied, waiting, slow) == (1, 1, one)
    publish(site, (host, said_by(host, epoch, door(1, epoch), door(2, epoch))))
    wait_until(lambda: site.wardline.sql(f"SELECT applied, waiting, door FROM wardline.epochs WHERE epoch = {epoch}")
               == [(2, 0, two)], 20, lambda: str(acks(site)))  # fmt: skip

    rows = acks(site)
    site.restart()
    site.send([(0, host.frame(1))])
    site.wait_frontier(host.lane(0).text, 1)
    time.sleep(1)
    assert acks(site) == rows, "the topic is read again, and nothing in it is news"
    publish(site, (host, said_by(host, epoch, state="stopped")))
    wait_until(lambda: {state for _, _, state in acks(site)[-3:]} == {"gone", "stopped"}, 20, lambda: str(acks(site)))


def test_rows_wait_for_a_store_that_is_away_and_frames_are_judged_meanwhile(site: Site) -> None:
    site.wardline.kill("store")
    revoke(site.home, "while-away")
    wait_until(lambda: "control entries" in str(site.figures()["waits_for"]), 20, lambda: str(site.figures()))
    late = Host("late-store", boot=HOST_BOOT + 700, key=own_key(site.home, "hosts", "late-store"))
    site.register(late)
    site.wardline.start("store")
    wait_revocations(site, "while-away", "live")
    site.send([(0, late.frame(1))])
    site.wait_frontier(late.lane(0).text, 1)
