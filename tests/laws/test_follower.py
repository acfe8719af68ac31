"""What a follower of the control log may believe, message by message: what joins, what is refused, what that leaves."""

import random
from collections.abc import Iterable
from dataclasses import replace

import pytest

from schemas.control import EPOCH_MAX, Entry, parse_entry
from schemas.errors import FrameFault
from schemas.follower import Beat, Follower
from tests.support.entries import CONTROL, STRANGER, Journal, digest_of, revocation

Took = Entry | Beat | str | None


def take(follower: Follower, data: bytes | None, *, at_end: bool = True) -> Took:
    """What one message did: what `take` returns, or the reason of its refusal, which must be counted and change nothing."""
    before = dict(follower.refused)
    seen = (follower.entries(), follower.epoch, follower.live, follower.synced, follower.counter)
    try:
        took: Entry | Beat | FrameFault | None = follower.take(data, at_end=at_end)
    except FrameFault as fault:
        took = fault
    if isinstance(took, FrameFault):
        assert follower.refused == before | {took.reason: before.get(took.reason, 0) + 1}
        assert seen == (follower.entries(), follower.epoch, follower.live, follower.synced, follower.counter)
        assert str(took).isprintable()
        return took.reason
    whole = not isinstance(took, Beat) or took.whole
    assert follower.refused == (before if whole else before | {"digest": before.get("digest", 0) + 1})
    return took


def read(follower: Follower, log: Iterable[bytes | None]) -> list[Took]:
    """One session: the log from its beginning to its end."""
    follower.begin()
    log = list(log)
    return [take(follower, data, at_end=at == len(log) - 1) for at, data in enumerate(log)]


def joined(journal: Journal, *, epoch: int = 0, counter: int = 0) -> Follower:
    """A follower that knows what is live now."""
    follower = Follower(CONTROL.pin, epoch=epoch, counter=counter)
    assert isinstance(read(follower, [*journal.whole(), journal.beat()])[-1], Beat)
    assert follower.synced
    return follower


def some() -> Journal:
    """Three agents, of which one was removed and one is revoked."""
    journal = Journal()
    for name in ("x", "y", "z"):
        journal.put(f"agent/{name}", {"owner": name})
    journal.remove("agent/y")
    journal.put("revocation/agent:z", revocation("z"))
    return journal


def agrees(follower: Follower, journal: Journal) -> None:
    live = journal.live()
    assert follower.digest() == digest_of(entry.payload() for entry in live.values())
    assert {entry.key: entry for entry in follower.entries()} == live
    assert [entry.epoch for entry in follower.entries()] == sorted(entry.epoch for entry in live.values())
    assert follower.live == len(live)
    for key in ("agent/x", "agent/y", "nobody"):
        assert follower.get(key) == live.get(key)


# -- joining ---------------------------------------------------------------------------------------------------------


def test_nothing_is_believed_before_the_heartbeat_at_the_end() -> None:
    journal = some()
    follower = Follower(CONTROL.pin)
    for data in journal.whole():
        assert isinstance(take(follower, data), Entry)
        assert not follower.synced
    beat = take(follower, journal.beat())
    assert beat == Beat(counter=1, epoch=5, time_ns=parse_entry(journal.beat()).entry.time_ns, whole=True)
    assert (follower.synced, follower.epoch, follower.counter) == (True, 5, 1)
    agrees(follower, journal)
    assert [entry.name for entry in follower.entries("revocation")] == ["agent:z"]


def test_an_empty_log_with_a_heartbeat_is_whole() -> None:
    follower = joined(Journal())
    assert (follower.live, follower.epoch) == (0, 0)


def test_a_heartbeat_before_the_end_says_nothing_while_joining() -> None:
    journal = some()
    early = journal.beat()
    follower = Follower(CONTROL.pin)
    took = read(follower, [early, *journal.whole(), journal.beat()])
    assert took[0] is None
    assert follower.synced
    assert follower.refused == {}


def test_the_order_of_a_compacted_log_does_not_matter() -> None:
    journal = some()
    for seed in range(20):
        log = journal.whole() + [journal.wire(entry) for entry in journal.log]
        random.Random(seed).shuffle(log)
        follower = Follower(CONTROL.pin)
        read(follower, [*log, None, journal.beat()])
        agrees(follower, journal)
        assert follower.synced


def test_the_tombstone_of_anybody_removes_nothing() -> None:
    journal = some()
    follower = joined(journal)
    assert take(follower, None) is None
    agrees(follower, journal)


def test_an_older_entry_of_a_key_is_refused_while_joining_too() -> None:
    journal = some()
    older, newer = journal.put("agent/x", {"owner": "a"}), journal.put("agent/x", {"owner": "b"})
    follower = Follower(CONTROL.pin)
    follower.begin()
    assert isinstance(take(follower, newer), Entry)
    assert take(follower, older) == "epoch"


def test_a_log_without_its_heartbeat_is_never_whole() -> None:
    follower = Follower(CONTROL.pin)
    read(follower, some().whole())
    assert not follower.synced


def test_a_log_that_lacks_an_entry_is_not_whole_until_it_is_read_with_it() -> None:
    journal = some()
    log = journal.whole()
    follower = Follower(CONTROL.pin)
    beat = read(follower, [*log[:1], *log[2:], journal.beat()])[-1]
    assert isinstance(beat, Beat)
    assert (beat.whole, follower.synced, follower.refused) == (False, False, {"digest": 1})
    read(follower, [*log, journal.beat()])
    assert follower.synced
    agrees(follower, journal)


def test_a_log_that_is_read_again_before_the_next_heartbeat_waits_for_it() -> None:
    journal = some()
    log = [*journal.whole(), journal.beat()]
    follower = Follower(CONTROL.pin)
    read(follower, log)
    assert read(follower, log)[-1] is None
    assert (follower.synced, follower.refused) == (False, {})
    assert isinstance(take(follower, journal.beat()), Beat)
    assert follower.synced


# -- forged, foreign, old --------------------------------------------------------------------------------------------


def forged(journal: Journal, key: str, epoch: int, value: object = None) -> bytes:
    """An entry that a stranger made under the name of control's key."""
    entry = replace(journal.log[0], key=key, epoch=epoch, value=value)
    return entry.encode(CONTROL.key_id, STRANGER.sign)


FORGERIES = {
    "an agent more": ("agent/evil", EPOCH_MAX, {"owner": "evil"}),
    "an agent in the place of another": ("agent/x", 99, {"owner": "evil"}),
    "the end of a revocation": ("revocation/agent:z", 99, None),
    "a control key": (STRANGER.entry_key, 99, STRANGER.entry_value),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_a_forged_entry_in_the_log_is_found_by_the_digest_and_refused_by_its_signature(what: str) -> None:
    """The first reading cannot say which of the entries it is; the second checks each, and what is left is whole."""
    journal = some()
    for at in range(len(journal.whole()) + 1):
        follower = Follower(CONTROL.pin)
        log = journal.whole()
        log.insert(at, forged(journal, *FORGERIES[what]))
        first = read(follower, [*log, journal.beat()])
        assert isinstance(first[-1], Beat)
        assert not first[-1].whole
        second = read(follower, [*log, journal.beat()])
        assert (second[at], follower.synced) == ("signature", True)
        agrees(follower, journal)
        # and from then on entries are taken as ever
        assert isinstance(take(follower, journal.put("agent/new", {"owner": "n"})), Entry)
        assert isinstance(take(follower, journal.beat()), Beat)
        agrees(follower, journal)


def test_a_forged_entry_over_the_real_one_of_a_compacted_log_leaves_it_stale() -> None:
    """Who can write to the topic can destroy, but not lie: control publishes again, and the follower heals."""
    journal = some()
    log = journal.whole()
    log[0] = forged(journal, "agent/x", 1, {"owner": "evil"})
    follower = Follower(CONTROL.pin)
    for _ in range(4):
        beat = read(follower, [*log, journal.beat()])[-1]
        assert isinstance(beat, Beat)
        assert not beat.whole
        assert not follower.synced
    read(follower, [*log, *journal.whole(), journal.beat()])
    assert follower.synced
    agrees(follower, journal)


def test_a_forged_removal_of_a_key_that_is_not_live_moves_nothing() -> None:
    """The digest does not see it: neither the epoch that was reached nor a later entry of the key may suffer from it."""
    journal = some()
    follower = Follower(CONTROL.pin)
    removal = forged(journal, "revocation/agent:x", EPOCH_MAX)
    read(follower, [removal, *journal.whole(), journal.beat()])
    assert (follower.synced, follower.epoch) == (True, journal.epoch)
    assert isinstance(take(follower, journal.put("revocation/agent:x", revocation("x"))), Entry)
    beat = take(follower, journal.beat())
    assert isinstance(beat, Beat)
    assert beat.whole
    agrees(follower, journal)


@pytest.mark.parametrize("at", [0, 4, 11, 12, 40, 75, 76, 100, -1])
def test_a_flipped_bit_in_an_entry_is_refused_when_synced(at: int) -> None:
    journal = some()
    follower = joined(journal)
    data = bytearray(journal.put("agent/new", {"owner": "n"}))
    data[at] ^= 1
    assert take(follower, bytes(data)) in {"form", "signature", "key"}


def test_a_foreign_key_is_refused_in_an_entry_and_in_a_heartbeat() -> None:
    journal = some()
    follower = joined(journal)
    entry = replace(journal.log[0], epoch=6)
    assert take(follower, entry.encode(STRANGER.key_id, STRANGER.sign)) == "key"
    assert take(follower, journal.beat(signer=STRANGER)) == "key"
    # also while joining, when it is the only heartbeat
    fresh = Follower(CONTROL.pin)
    assert read(fresh, [*journal.whole(), journal.beat(signer=STRANGER)])[-1] == "key"
    assert not fresh.synced


def test_a_stranger_who_announces_himself_is_not_believed() -> None:
    journal = some()
    journal.put(STRANGER.entry_key, STRANGER.entry_value)
    log = [journal.wire(entry, STRANGER) for entry in journal.log]
    follower = Follower(CONTROL.pin)
    for _ in range(3):
        assert read(follower, [*log, journal.beat(signer=STRANGER)])[-1] == "key"
        assert not follower.synced


def test_an_old_entry_and_one_out_of_order_are_refused_when_synced() -> None:
    journal = some()
    old = journal.wire(journal.log[0])
    journal.put("agent/x", {"owner": "newer"})
    skipped = journal.put("agent/late", {"owner": "l"})
    later = journal.put("agent/later", {"owner": "l"})
    early = Journal(log=journal.log[:6], counter=journal.counter)
    follower = joined(early)
    assert take(follower, old) == "epoch"
    agent = journal.wire(journal.log[1])
    assert isinstance(take(follower, journal.wire(journal.log[6])), Entry)
    assert isinstance(take(follower, later), Entry)
    assert take(follower, skipped) is None
    forgetful = joined(Journal(log=journal.log[:6], counter=journal.counter))
    assert take(forgetful, agent) == "order"  # of a key whose removal it never read


def test_an_entry_behind_a_gap_is_not_believed_before_a_heartbeat_says_that_nothing_is_missing() -> None:
    """Whoever says that he has applied an epoch has applied all before it."""
    journal = some()
    follower = joined(journal)
    missing, later = journal.put("revocation/agent:x", revocation("x")), journal.put("agent/later", {"owner": "l"})
    assert isinstance(take(follower, later), Entry)
    assert not follower.synced
    beat = take(follower, journal.beat())
    assert isinstance(beat, Beat)
    assert (beat.whole, follower.synced) == (False, False)
    # it comes after all, or the log is read again
    assert isinstance(take(follower, missing), Entry)
    assert isinstance(take(follower, journal.beat()), Beat)
    assert follower.synced
    agrees(follower, journal)


def test_a_gap_that_left_nothing_behind_ends_with_the_next_heartbeat() -> None:
    journal = some()
    follower = joined(journal)
    journal.put("agent/short", {"owner": "s"})
    journal.remove("agent/short")
    assert isinstance(take(follower, journal.put("agent/later", {"owner": "l"})), Entry)
    assert not follower.synced
    evil = replace(journal.log[0], key="agent/evil", epoch=99)
    assert take(follower, evil.encode(CONTROL.key_id, STRANGER.sign)) == "signature"  # checked one by one meanwhile
    assert isinstance(take(follower, journal.beat()), Beat)
    assert follower.synced
    agrees(follower, journal)


def test_a_removed_key_does_not_come_back() -> None:
    journal = some()
    follower = joined(journal)
    old = journal.wire(journal.log[4])
    assert isinstance(take(follower, journal.remove("revocation/agent:z")), Entry)
    removed = journal.wire(journal.log[5])
    assert take(follower, removed) is None  # known: the same word again
    assert take(follower, old) == "epoch"
    assert isinstance(take(follower, journal.beat()), Beat)
    agrees(follower, journal)


def test_what_is_known_changes_nothing_and_is_no_refusal() -> None:
    journal = some()
    follower = joined(journal)
    assert [take(follower, data) for data in journal.whole()] == [None] * 3
    assert follower.refused == {}


def test_an_equal_or_lower_heartbeat_counter_is_refused() -> None:
    journal = some()
    follower = joined(journal, counter=0)
    for counter in (follower.counter, follower.counter - 1, -5):
        assert take(follower, journal.beat(counter=counter)) == "counter"
    assert follower.synced


def test_a_log_from_before_a_restart_is_refused() -> None:
    """Floors are kept over a restart: a backup of the topic, an old broker, a replay of all of it."""
    journal = some()
    old = [*journal.whole(), journal.beat()]
    journal.put("revocation/agent:x", revocation("x"))
    kept = joined(journal)
    again = Follower(CONTROL.pin, epoch=kept.epoch, counter=kept.counter)
    assert read(again, old)[-1] == "counter"
    assert not again.synced
    # control's own key under an old state with a new counter: an older epoch
    earlier = Journal(log=journal.log[:5], counter=kept.counter)
    assert read(again, [*earlier.whole(), earlier.beat()])[-1] == "epoch"
    assert not again.synced
    journal.counter = kept.counter
    read(again, [*journal.whole(), journal.beat()])
    assert again.synced


def test_a_heartbeat_of_an_older_epoch_is_refused_when_synced() -> None:
    journal = some()
    follower = joined(journal)
    assert take(follower, journal.beat(epoch=4)) == "epoch"
    assert follower.synced


def test_a_heartbeat_that_differs_in_the_number_alone_is_not_whole() -> None:
    journal = some()
    follower = joined(journal)
    beat = take(follower, journal.beat(live=4))
    assert isinstance(beat, Beat)
    assert not beat.whole


@pytest.mark.parametrize("field", ["counter", "digest", "live"])
def test_a_heartbeat_that_lacks_a_field_is_refused(field: str) -> None:
    journal = some()
    follower = joined(journal)
    beat = parse_entry(journal.beat()).entry
    for value in (None, True, 1.0, [], {}):
        said = {**(beat.value or {}), field: value}
        assert take(follower, journal.wire(replace(beat, value=said))) == "form"
    assert take(follower, journal.wire(replace(beat, value=None))) == "form"


def test_epochs_that_left_nothing_behind_are_passed_by_a_heartbeat() -> None:
    journal = some()
    follower = joined(journal)
    journal.put("agent/short", {"owner": "s"})
    journal.remove("agent/short")
    beat = take(follower, journal.beat())
    assert isinstance(beat, Beat)
    assert (beat.whole, follower.epoch) == (True, 7)
