"""Control keys as a follower sees them: two overlap, the old one ends, and neither a restart nor a replay brings it back."""

from schemas.control import Entry
from schemas.follower import Beat, Follower
from tests.laws.test_follower import read, take
from tests.support.entries import CONTROL, NEXT, STRANGER, Journal, Signer, revocation


def rotated(*, retired: bool = False) -> tuple[Journal, list[bytes]]:
    """A journal whose second key was announced by the first; with `retired` the second has ended the first."""
    journal = Journal()
    log = [journal.put(CONTROL.entry_key, CONTROL.entry_value), journal.put("agent/x", {"owner": "o"})]
    log.append(journal.put(NEXT.entry_key, NEXT.entry_value))
    journal.signer = NEXT
    log.append(journal.put("agent/y", {"owner": "o"}))
    if retired:
        log.append(journal.remove(CONTROL.entry_key))
    return journal, log


def synced(journal: Journal, log: list[bytes], pin: Signer = CONTROL) -> Follower:
    follower = Follower(pin.pin)
    assert isinstance(read(follower, [*log, journal.beat()])[-1], Beat)
    assert follower.synced
    return follower


def test_the_pinned_key_is_the_one_before_the_log_names_any() -> None:
    journal = Journal()
    follower = synced(journal, [journal.put("agent/x", {"owner": "o"})])
    assert follower.keys == CONTROL.pin


def test_a_key_that_was_announced_with_the_old_one_signs_from_then_on() -> None:
    journal, log = Journal(), []
    log.append(journal.put(CONTROL.entry_key, CONTROL.entry_value))
    follower = synced(journal, log)
    journal.signer = NEXT
    assert take(follower, journal.put("agent/x", {"owner": "o"})) == "key"  # not before it is announced
    journal.log.pop()
    journal.signer = CONTROL
    assert isinstance(take(follower, journal.put(NEXT.entry_key, NEXT.entry_value)), Entry)
    assert follower.keys == CONTROL.pin | NEXT.pin
    for signer in (NEXT, CONTROL, NEXT):
        journal.signer = signer
        assert isinstance(take(follower, journal.put("agent/x", {"owner": "o"})), Entry)
        beat = take(follower, journal.beat())
        assert isinstance(beat, Beat)
        assert beat.whole


def test_who_joins_with_the_old_key_pinned_follows_the_announcement() -> None:
    journal, log = rotated()
    assert synced(journal, log).keys == CONTROL.pin | NEXT.pin
    assert synced(*rotated(retired=True)).keys == NEXT.pin


def test_an_announcement_of_an_announced_key_is_followed_too() -> None:
    journal, log = rotated(retired=True)
    third = Signer("a third")
    log.append(journal.put(third.entry_key, third.entry_value))
    journal.signer = third
    log.append(journal.remove(NEXT.entry_key))
    # the chain from the pinned key to the third goes over the second, whose own entry is gone: it is not followed any more
    fresh = Follower(CONTROL.pin)
    assert read(fresh, [*log, journal.beat()])[-1] == "key"
    assert synced(journal, log, NEXT).keys == third.pin


def test_a_retired_key_signs_nothing_any_more() -> None:
    journal, log = rotated(retired=True)
    follower = synced(journal, log)
    journal.signer = CONTROL
    assert take(follower, journal.put("agent/z", {"owner": "evil"})) == "key"
    journal.log.pop()
    assert take(follower, journal.beat()) == "key"
    assert take(follower, journal.put(STRANGER.entry_key, STRANGER.entry_value)) == "key"


def test_a_retired_key_stays_retired_when_the_log_is_read_again() -> None:
    """Its holder may write a log of his own, with high epochs and counters: what was learned once is not unlearned."""
    journal, log = rotated(retired=True)
    follower = synced(journal, log)
    evil = Journal(log=list(journal.log[:3]), counter=journal.counter + 100)
    for _ in range(20):
        evil.put("agent/x", {"owner": "evil"})
    for _ in range(3):
        assert read(follower, [*evil.whole(), evil.beat()])[-1] == "key"
        assert not follower.synced
    assert follower.keys == NEXT.pin
    read(follower, [*log, journal.beat()])
    assert follower.synced


def test_who_learned_the_new_key_needs_no_word_of_the_old_one() -> None:
    """Also when a new broker has everything signed by the new key, its own entry too."""
    journal, log = rotated(retired=True)
    follower = synced(journal, log)
    read(follower, [*journal.whole(), journal.beat()])
    assert follower.synced
    again = Follower(follower.keys, epoch=follower.epoch, counter=follower.counter)
    read(again, [*journal.whole(), journal.beat()])
    assert again.synced
    # while one who knows the old one alone cannot tell it from a stranger's
    assert read(Follower(CONTROL.pin), [*journal.whole(), journal.beat()])[-1] == "key"


def test_a_heartbeat_of_a_key_that_the_log_has_retired_proves_nothing() -> None:
    """Whoever still pins the old key must not take its word, when what it read says that it is retired."""
    journal, log = rotated(retired=True)
    follower = Follower(CONTROL.pin)
    assert read(follower, [*log, journal.beat(signer=CONTROL)])[-1] == "key"
    assert not follower.synced
    assert isinstance(take(follower, journal.beat()), Beat)
    assert follower.synced


def test_entries_of_a_new_key_may_stand_before_its_own_entry() -> None:
    """A compacted log has them in any order, and a stranger's entry in it has each of them checked."""
    journal, _ = rotated()
    whole = [journal.wire(entry) for entry in journal.log if entry.key != NEXT.entry_key]
    announcement = journal.wire(journal.log[2], CONTROL)
    follower = Follower(CONTROL.pin)
    evil = Entry(epoch=99, key="agent/evil", time_ns=0, actor="evil", value={}).encode(CONTROL.key_id, STRANGER.sign)
    log = [*whole, announcement, evil]
    for _ in range(2):
        read(follower, [*log, journal.beat()])
    assert follower.synced
    assert follower.refused["signature"] >= 1
    assert {entry.key: entry for entry in follower.entries()} == journal.live()


def test_an_announcement_that_is_forged_is_not_followed() -> None:
    journal, log = rotated()
    log[2] = journal.log[2].encode(CONTROL.key_id, STRANGER.sign)
    follower = Follower(CONTROL.pin)
    assert read(follower, [*log, journal.beat()])[-1] == "signature"
    assert not follower.synced
    assert follower.keys == CONTROL.pin


def test_two_keys_that_announce_each_other_are_both_strangers() -> None:
    journal, other = Journal(signer=STRANGER), Signer("another stranger")
    log = [journal.put(other.entry_key, other.entry_value)]
    journal.signer = other
    log.append(journal.put(STRANGER.entry_key, STRANGER.entry_value))
    follower = Follower(CONTROL.pin)
    for signer in (STRANGER, other):
        assert read(follower, [*log, journal.beat(signer=signer)])[-1] == "key"


def test_a_key_entry_that_is_no_key_is_refused() -> None:
    journal, log = rotated()
    follower = synced(journal, log)
    wrong = [{}, {"public": 7}, {"public": "zz"}, {"public": "ab"}, STRANGER.entry_value]
    for value in wrong:
        assert take(follower, journal.put(NEXT.entry_key, value)) == "form"
    assert follower.keys == CONTROL.pin | NEXT.pin


def test_a_revocation_goes_on_over_a_rotation() -> None:
    journal, log = rotated()
    follower = synced(journal, log)
    assert isinstance(take(follower, journal.put("revocation/agent:x", revocation("x"))), Entry)
    assert isinstance(take(follower, journal.remove(CONTROL.entry_key)), Entry)
    beat = take(follower, journal.beat())
    assert isinstance(beat, Beat)
    assert beat.whole
    assert follower.get("revocation/agent:x") is not None
