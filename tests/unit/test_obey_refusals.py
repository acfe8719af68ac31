"""What a host that obeys control refuses, what it keeps over a restart, and how it follows a new control key."""

import dataclasses
from collections.abc import Callable

import pytest

from enforcers.core.obey import Floors, parse_floors
from schemas.errors import FrameFault, OperatorFault
from tests.support.entries import CONTROL, NEXT, STRANGER, Journal, revocation
from tests.support.obeying import HOST, KEY, OTHER_KEY, STALE_NS, Host, ready, registered, restarted

# -- what is refused -----------------------------------------------------------------------------------------------------


def flipped(data: bytes, at: int = -2) -> bytes:
    """One bit is another one; the signature is 12 bytes from the start."""
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


REFUSED: dict[str, tuple[Callable[[Journal], bytes], str]] = {
    "an entry of a foreign key": (
        lambda j: Journal(signer=STRANGER, log=list(j.log)).put("revocation/agent:x", revocation("x")), "key"),
    "a heartbeat of a foreign key": (lambda j: j.beat(signer=STRANGER), "key"),
    "an entry with a flipped bit": (lambda j: flipped(j.put("pause", {"reason": "x"})), "form"),
    "an entry with a flipped bit in its signature": (
        lambda j: flipped(j.put("pause", {"reason": "x"}), 20), "signature"),
    "a heartbeat with a flipped bit in its signature": (
        lambda j: flipped(j.beat(), 20), "signature"),
    "an older entry of a known key": (
        lambda j: j.wire(dataclasses.replace(j.log[0], value={"key": OTHER_KEY}, epoch=1)), "epoch"),
    "an entry that comes behind a later one": (
        lambda j: j.wire(dataclasses.replace(j.log[0], key="agent/late", epoch=1)), "order"),
    "a heartbeat with a counter that was heard": (lambda j: j.beat(counter=j.counter), "counter"),
    "a heartbeat with a lower counter": (lambda j: j.beat(counter=j.counter - 1), "counter"),
    "a heartbeat of an older epoch": (lambda j: j.beat(epoch=1), "epoch"),
    "bytes that are no entry": (lambda j: b"WLC1 hello", "form"),
    "an entry of another tenant": (lambda j: j.wire(dataclasses.replace(j.log[0], epoch=99, tenant="acme")), "tenant"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused_means_counted_and_the_old_state_kept(what: str) -> None:
    make, reason = REFUSED[what]
    journal = registered()
    journal.put("revocation/agent:a", revocation("a"))
    host = ready(journal)
    host.hear(journal.beat())
    before = (dict(host.board.revoked), host.board.epoch, host.board.paused, host.board.until_ns, list(host.board.steps))
    with pytest.raises(FrameFault) as caught:
        host.hear(make(journal))
    assert caught.value.reason == reason
    assert host.obey.follower.refused == {reason: 1}
    assert before == (host.board.revoked, host.board.epoch, host.board.paused, host.board.until_ns, host.board.steps)
    host.later(STALE_NS)
    assert host.obey.state == "stale", "a refused message shows nothing fresh"


def test_a_missing_entry_is_found_by_the_next_heartbeat_and_by_reading_again() -> None:
    host = ready()
    missed = host.journal.put("revocation/agent:a", revocation("a"))
    host.hear(host.journal.beat())
    assert host.obey.broken
    assert host.obey.follower.refused == {"digest": 1}
    until = host.board.until_ns
    host.obey.begin()
    assert not host.obey.broken
    first = host.journal.wire(host.journal.log[0])
    host.hear(first, host.journal.beat())
    assert (host.obey.broken, host.board.until_ns, host.board.revoked) == (True, until, {}), "it is still missing"
    host.later(STALE_NS)
    assert host.obey.state == "stale"
    assert "digest" in host.obey.why
    host.obey.begin()
    host.hear(first, missed, host.journal.beat())
    assert (host.board.revoked, host.obey.state) == ({"agent:a": 0}, "ready")


def test_what_the_log_lacks_is_said_before_a_disk_that_was_full_once() -> None:
    """Control sends again what is lost where it hears of that: a fault of our own must not stand before it for ever."""
    host = ready()
    host.agents_room = False
    host.journal.put("revocation/agent:a", revocation("a"))  # which nobody hears of
    host.hear(host.journal.put("agent/reader", {"secret": "", "owner": "o", "subs": [], "spiffe": []}))
    assert "no space left" in host.obey.why
    host.agents_room = True
    host.obey.begin()
    host.hear(host.journal.wire(host.journal.log[0]), host.journal.wire(host.journal.log[-1]), host.journal.beat())
    host.later(STALE_NS)
    assert host.obey.state == "stale"
    assert "digest" in host.obey.why


def test_a_forged_entry_that_was_read_while_joining_is_refused_the_second_time() -> None:
    journal = registered()
    forged = Journal(signer=STRANGER, log=list(journal.log)).put("revocation/agent:x", revocation("x"))
    host = Host(journal).hear(*journal.whole(), forged, journal.beat())
    assert (host.obey.broken, host.board.steps) == (True, [])
    host.obey.begin()
    host.hear(*journal.whole(), at_end=False)
    with pytest.raises(FrameFault):
        host.hear(forged, at_end=False)
    host.hear(journal.beat())
    assert host.obey.follower.refused == {"digest": 1, "key": 1}
    assert (host.board.revoked, host.obey.state) == ({}, "ready")


def test_while_it_is_read_again_the_board_keeps_what_it_has() -> None:
    journal = registered()
    journal.put("revocation/agent:a", revocation("a"))
    journal.put("worker/work-1", {"key": OTHER_KEY})
    host = ready(journal)
    host.obey.begin()
    host.hear(journal.wire(journal.log[0]))
    assert host.board.revoked == {"agent:a": 0}
    assert host.obey.registered(HOST, KEY)
    assert host.obey.worker("work-1") is not None


# -- over a restart ------------------------------------------------------------------------------------------------------


def test_after_a_restart_an_older_state_is_refused() -> None:
    host = ready()
    old = [*host.journal.whole()]
    host.hear(host.journal.put("revocation/agent:a", revocation("a")), host.journal.beat())
    again = restarted(host)
    stolen = Journal(log=list(host.journal.log[:1]), counter=host.journal.counter)
    with pytest.raises(FrameFault) as caught:
        again.hear(*old, stolen.beat())
    assert caught.value.reason == "epoch"
    assert (again.board.steps, again.obey.state) == ([], "joining")
    assert "epoch 1" in again.obey.why


def test_after_a_restart_a_heartbeat_that_was_heard_makes_nothing_fresh() -> None:
    host = ready()
    again = restarted(host)
    again.hear(*host.journal.whole(), host.journal.beat(counter=host.journal.counter))
    assert (again.board.steps, again.obey.state) == ([], "joining")
    again.hear(host.journal.beat())
    assert again.obey.state == "ready"


def test_an_epoch_that_no_heartbeat_has_confirmed_yet_is_a_floor_too() -> None:
    host = ready()
    host.hear(host.journal.put("revocation/agent:a", revocation("a")))
    assert host.disk.epoch == 2


def test_it_knows_workers_and_its_own_right_before_control_is_heard() -> None:
    journal = registered()
    journal.put("worker/work-1", {"key": OTHER_KEY})
    again = restarted(ready(journal))
    assert again.obey.registered(HOST, KEY)
    assert not again.obey.registered(HOST, OTHER_KEY)
    assert again.obey.worker("work-1") == bytes.fromhex(OTHER_KEY)
    assert again.obey.state == "joining"
    assert again.ack().epoch == 0


def test_of_the_other_hosts_it_keeps_those_it_seals_for() -> None:
    journal = registered()
    for name in ("enforce-2", "replay-1"):
        journal.put(f"enforcer/{name}", {"key": OTHER_KEY})
    host = ready(journal)
    floors = host.obey.floors(["replay-1", "replay-9"])
    assert floors is not None
    assert set(floors.enforcers) == {HOST, "replay-1"}


def test_nothing_is_kept_before_it_has_joined_and_nothing_twice() -> None:
    journal = registered()
    host = Host(journal, floors=Floors(epoch=1))
    assert host.obey.floors() is None
    host.hear(*journal.whole(), journal.beat())
    assert host.obey.floors() is None
    host.hear(journal.beat(), keep=False)
    assert host.obey.floors() is not None


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", Floors().encode()[:-9], Floors().encode().replace(b"feed-1", b"feed-2"), Floors(epoch=-1).encode(),
     Floors(workers={"w": "zz"}).encode(), Floors(keys={"k": "aa" * 32}).encode(), Floors(keys={"aa": "aa"}).encode()],
)  # fmt: skip
def test_a_damaged_file_is_refused_with_what_to_do(data: bytes) -> None:
    with pytest.raises(OperatorFault, match=r"^/h/feed\.json: is damaged.*remove the file"):
        parse_floors(data, "/h/feed.json")


# -- control's key -------------------------------------------------------------------------------------------------------


def test_a_new_control_key_is_followed_and_kept_and_the_old_one_ends() -> None:
    journal = registered()
    journal.put(CONTROL.entry_key, CONTROL.entry_value)
    host = ready(journal)
    host.hear(journal.put(NEXT.entry_key, NEXT.entry_value))
    assert set(host.disk.keys) == {CONTROL.key_id.hex(), NEXT.key_id.hex()}
    journal.signer = NEXT
    host.hear(journal.put("pause", {"reason": "x"}), journal.beat())
    host.hear(journal.remove(CONTROL.entry_key), journal.beat())
    assert host.board.paused
    with pytest.raises(FrameFault) as caught:
        host.hear(journal.beat(signer=CONTROL))
    assert caught.value.reason == "key"
    again = restarted(host)
    assert set(host.disk.keys) == {NEXT.key_id.hex()}
    with pytest.raises(FrameFault):
        again.hear(*journal.whole(), journal.beat(signer=CONTROL))
    again.obey.begin()
    again.hear(*journal.whole(), journal.beat())
    assert again.obey.state == "ready"
