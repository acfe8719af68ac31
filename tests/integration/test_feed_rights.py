"""Who may say what: control's keys as they change, hosts and workers that control has registered, policies by their digest."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from enforcers.doors.spooler import Spooler
from ext.board import SeenWriter
from schemas.bundle import Bundle, Rule
from schemas.chunks import split_bundle
from schemas.config import Enforcer
from schemas.frame import parse_frame
from schemas.frontier import Frontier
from schemas.keys import own_key
from schemas.records import Standing
from tests.support.control import packed
from tests.support.entries import CONTROL, NEXT, revocation
from tests.support.fed import HOST, Fed, read_topic
from tests.support.home import wait_until
from tests.support.oracles import Rec

FRESH_S = 1.5
CONFIG = f"[control]\nheartbeat_ms = 200\nstale_ms = {int(FRESH_S * 1000)}\n[kafka]\npartitions = 1\n"


@pytest.fixture
def fed(tmp_path: Path) -> Iterator[Fed]:
    with Fed(tmp_path / "home", config=CONFIG) as fed:
        yield fed


def rules(*names: str) -> Bundle:
    return Bundle(rules=tuple(Rule(id=name, forbid=False) for name in names))


# -- control's keys ------------------------------------------------------------------------------------------------------


def test_control_changes_its_key_and_hosts_follow_without_a_pin(fed: Fed) -> None:
    control, journal = fed.control, fed.control.journal
    control.put(CONTROL.entry_key, CONTROL.entry_value)
    control.put(NEXT.entry_key, NEXT.entry_value)
    journal.signer = NEXT
    control.put("revocation/agent:a", revocation("a"))
    fed.wait_standing(Standing.REVOKED, "agent:a")
    control.remove(CONTROL.entry_key)
    wait_until(lambda: fed.said()["epoch"] == journal.epoch, 5, lambda: str(fed.said()))
    before = fed.refused().get("key", 0)
    with control.silence():
        control.beat(signer=CONTROL)
        wait_until(lambda: fed.refused().get("key", 0) == before + 1, 5, lambda: str(fed.said()))
    fed.wardline.stop(HOST)
    fed.wardline.start(HOST)
    assert fed.standing("agent:a") is Standing.REVOKED
    pins = {path.stem for path in fed.home.trusted("control").glob("*.pub")}
    assert pins == {CONTROL.key_id.hex()}, "pins are the operator's"


# -- hosts and workers ---------------------------------------------------------------------------------------------------


def door(fed: Fed, boot: int = (1 << 32) | 7) -> Spooler:
    small = Enforcer(segment_bytes=1 << 16, spool_bytes=1 << 20, spool_reserved_bytes=1 << 16)
    return Spooler(fed.home.host(HOST), boot, small)


def frames(fed: Fed) -> list[bytes]:
    return read_topic(fed.address(), "wardline.calls")


def test_a_host_sends_nothing_before_control_has_registered_its_key_and_nothing_after_it_was_removed(fed: Fed) -> None:
    fed.control.remove(f"enforcer/{HOST}")
    fed.wait_standing(Standing.STALE)
    fed.wait_why("has not registered")
    spool = door(fed)
    spool.append(Rec().arguments())
    wait_until(lambda: fed.said()["sealed"] == 1, 5, lambda: str(fed.said()))
    time.sleep(0.5)
    assert frames(fed) == []
    fed.control.put(f"enforcer/{HOST}", {"key": "ab" * 32})
    time.sleep(0.5)
    assert frames(fed) == [], "that is another key than its own"
    fed.control.enrol(HOST)
    wait_until(lambda: len(frames(fed)) == 1, 5, lambda: str(fed.said()))
    fed.wait_standing(Standing.GO)
    spool.abandon()


def test_only_a_worker_that_control_has_registered_is_believed_that_records_are_stored(fed: Fed) -> None:
    spool = door(fed)
    spool.append(Rec().arguments())
    wait_until(lambda: frames(fed), 5, lambda: str(fed.said()))
    lane = parse_frame(frames(fed)[0]).head.lane
    worker = own_key(fed.home, "workers", "work-1")
    stored = Frontier(lane=lane, frame_no=1, stored_ns=time.time_ns(), worker="work-1").encode(worker.sign)
    fed.control.send(stored, topic="stored")
    time.sleep(0.7)
    assert fed.said()["stored"] == 0, "its key is pinned in this home, and control has never heard of it"
    fed.control.enrol("work-1")
    wait_until(lambda: fed.said()["epoch"] == fed.control.journal.epoch, 5, lambda: str(fed.said()))
    fed.control.send(stored, topic="stored")
    wait_until(lambda: fed.said()["stored"] == 1, 5, lambda: str(fed.said()))
    spool.abandon()


def test_a_host_goes_on_sending_what_it_has_when_it_starts_without_control(fed: Fed) -> None:
    fed.control.enrol("work-1")
    wait_until(lambda: fed.said()["epoch"] == fed.control.journal.epoch, 5, lambda: str(fed.said()))
    with fed.control.silence():
        fed.wardline.stop(HOST)
        spool = door(fed)
        spool.append(Rec().arguments())
        spool.abandon()
        fed.wardline.start(HOST, wait=False)
        wait_until(lambda: len(frames(fed)) == 1, 15, lambda: str(fed.said()))
        assert fed.said()["state"] == "starting"


# -- policies ------------------------------------------------------------------------------------------------------------


def shelf(fed: Fed, digest: str) -> Path:
    return fed.home.host(HOST) / "bundle" / f"{digest}.json"


def wait_policy(fed: Fed, digest: str) -> None:
    def look() -> bool:
        fed.standing()
        return fed.board.policy.hex() == digest

    wait_until(look, 10, lambda: f"{digest[:12]}: {fed.said()}", every=0.005)


def test_a_policy_is_in_force_when_its_bundle_is_here_and_stays_until_the_next_one_is(fed: Fed) -> None:
    first = fed.control.policy(rules("one"))
    wait_policy(fed, first)
    assert shelf(fed, first).read_bytes() == rules("one").encode()
    wait_until(lambda: fed.said()["bundle"] == str(shelf(fed, first)), 2, lambda: str(fed.said()))
    second = fed.control.policy(rules("one", "two"), chunks=False)
    fed.control.put("revocation/agent:a", revocation("a"))
    fed.wait_standing(Standing.REVOKED, "agent:a")
    assert fed.board.policy.hex() == first
    fed.wait_standing(Standing.STALE, seconds=FRESH_S + 1)
    fed.wait_why(f"digest {second[:12]}")
    for chunk in packed(rules("one", "two"))[1]:
        fed.control.send(chunk.encode(), topic="bundles", key=chunk.key)
    wait_policy(fed, second)
    fed.wait_standing(Standing.GO)


def test_a_bundle_that_is_another_one_is_refused_and_counted(fed: Fed) -> None:
    first = fed.control.policy(rules("one"))
    wait_policy(fed, first)
    wanted = rules("one", "two")
    _, older = packed(rules("old"))
    for chunk in split_bundle(wanted.digest, older[0].data):
        fed.control.send(chunk.encode(), topic="bundles", key=chunk.key)
    fed.control.send(b"WLB1 is no chunk", topic="bundles")
    fed.control.policy(wanted, chunks=False)
    wait_until(lambda: fed.refused().get("form", 0) + fed.refused().get("bundle", 0) >= 2, 5, lambda: str(fed.said()))
    fed.wait_standing(Standing.STALE, seconds=FRESH_S + 1)
    assert fed.board.policy.hex() == first
    for chunk in packed(wanted)[1]:
        fed.control.send(chunk.encode(), topic="bundles", key=chunk.key)
    wait_policy(fed, wanted.digest)


def test_a_bundle_far_back_in_the_topic_is_found(fed: Fed) -> None:
    """A rollback names one that was sent long ago."""
    first = fed.control.policy(rules("first"))
    wait_policy(fed, first)
    for number in range(40):
        last = fed.control.policy(rules(f"p{number}"))
    wait_policy(fed, last)
    shelf(fed, first).unlink(missing_ok=True)  # it goes by itself where the host had each of those between
    fed.control.policy(rules("first"), chunks=False)
    wait_policy(fed, first)


def test_a_bundle_on_the_disk_that_was_altered_is_fetched_again(fed: Fed) -> None:
    digest = fed.control.policy(rules("one"))
    wait_policy(fed, digest)
    path = shelf(fed, digest)
    fed.wardline.stop(HOST)
    path.write_bytes(rules("everything").encode())
    fed.wardline.start(HOST)
    assert path.read_bytes() == rules("one").encode()


# -- acknowledgements ----------------------------------------------------------------------------------------------------


def test_each_living_door_is_acknowledged_by_what_it_says_itself_and_a_host_without_doors_by_its_own(fed: Fed) -> None:
    def doors() -> dict[str, int]:
        return {door.boot: door.epoch for door in fed.acks()[-1].doors}

    fed.control.put("agent/a", {"owner": "o"})
    epoch = fed.control.journal.epoch
    wait_until(lambda: (fed.acks()[-1].epoch, doors()) == (epoch, {}), 5, lambda: str(fed.acks()[-1]))
    one, two = door(fed, (1 << 32) | 1), door(fed, (1 << 32) | 2)
    names = [f"{spool.boot:016x}" for spool in (one, two)]
    wait_until(lambda: doors() == dict.fromkeys(names, 0), 5, lambda: str(fed.acks()[-1]))
    seen = [SeenWriter(str(spool.folder)) for spool in (one, two)]
    seen[0].write(epoch, b"", 5)
    wait_until(lambda: doors() == {names[0]: epoch, names[1]: 0}, 5, lambda: str(fed.acks()[-1]))
    assert fed.acks()[-1].doors[0].applied_ns == 5
    seen[1].write(epoch + 9, b"", 5)
    wait_until(lambda: doors() == dict.fromkeys(names, epoch), 5, lambda: str(fed.acks()[-1]))
    one.close()
    two.abandon()  # as a crash would end it: its host adopts it, and holds its lock itself
    wait_until(lambda: doors() == {}, 5, lambda: str(fed.acks()[-1]))


def test_a_host_says_something_every_second_and_its_last_word_is_that_it_stopped(fed: Fed) -> None:
    time.sleep(2.5)
    said = [ack.said_ns for ack in fed.acks() if ack.state == "ready"]
    assert max(later - earlier for earlier, later in itertools.pairwise(said)) < 1_500_000_000
    fed.wardline.stop(HOST)
    last = fed.acks()[-1]
    assert (last.state, last.host) == ("stopped", HOST)
    assert fed.standing() is Standing.STALE, "nobody tells the doors anything now"
