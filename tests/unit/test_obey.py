"""A host that obeys control: what the board gets and when, how long it is fresh, and what is acknowledged."""

import dataclasses
from typing import Any

from tests.support.entries import Journal, revocation
from tests.support.obeying import BOOT, HOST, KEY, OTHER_KEY, STALE_NS, Host, ready, registered

NEW, OLD = "aa" * 32, "bb" * 32


# -- joining -------------------------------------------------------------------------------------------------------------


def test_nothing_reaches_the_board_before_a_heartbeat_vouches_for_what_was_read() -> None:
    journal = registered()
    journal.put("revocation/agent:a", revocation("a"))
    host = Host(journal).hear(*journal.whole())
    assert (host.board.steps, host.obey.state, host.obey.why) == ([], "joining", "reads the control log")
    host.hear(journal.beat())
    assert host.board.steps == ["replace", "fresh"]
    assert (host.board.revoked, host.board.epoch, host.obey.state, host.obey.why) == ({"agent:a": 0}, 2, "ready", "")


def test_a_heartbeat_that_lay_in_the_log_before_it_was_read_proves_nothing_fresh() -> None:
    journal = registered()
    host = Host(journal).hear(*journal.whole(), journal.beat(), written=0)
    assert (host.board.steps, host.obey.state, host.obey.why) == (["replace"], "joining", "no new heartbeat of control")
    host.hear(journal.beat())
    assert (host.board.steps, host.obey.state) == (["replace", "fresh"], "ready")


def test_a_host_that_is_not_registered_is_not_fresh_until_it_is() -> None:
    journal = Journal()
    journal.put("agent/a", {"owner": "o"})
    host = Host(journal).hear(*journal.whole(), journal.beat())
    assert host.obey.state == "joining"
    assert host.obey.why == "control has not registered host `enforce-1` with its key"
    host.hear(journal.put(f"enforcer/{HOST}", {"key": OTHER_KEY}))
    assert host.obey.state == "joining"
    host.hear(journal.put(f"enforcer/{HOST}", {"key": KEY}))
    assert host.obey.state == "ready"


def test_a_host_that_is_removed_is_stale_when_its_time_is_over() -> None:
    host = ready()
    host.hear(host.journal.remove(f"enforcer/{HOST}"), host.journal.beat())
    assert not host.obey.registered(HOST, KEY)
    host.later(STALE_NS)
    assert (host.obey.state, host.obey.why) == ("stale", "control has not registered host `enforce-1` with its key")


def test_the_whole_state_is_one_step() -> None:
    journal = registered()
    for number in range(5):
        journal.put(f"revocation/agent:{number}", revocation(str(number), not_before=number))
    journal.put("pause", {"reason": "fire"})
    journal.put("worker/work-1", {"key": OTHER_KEY})
    host = ready(journal)
    assert host.board.steps.count("replace") == 1
    assert host.board.revoked == {f"agent:{number}": number for number in range(5)}
    assert host.board.paused
    assert host.obey.worker("work-1") == bytes.fromhex(OTHER_KEY)
    assert host.obey.worker("work-2") is None


# -- obeying -------------------------------------------------------------------------------------------------------------


def test_an_entry_is_on_the_board_at_once_and_needs_no_heartbeat() -> None:
    host = ready()
    host.hear(host.journal.put("revocation/agent:a", revocation("a", not_before=77)))
    assert (host.board.revoked, host.board.epoch, host.obey.applied_ns) == ({"agent:a": 77}, 2, host.now + 7)
    host.hear(host.journal.remove("revocation/agent:a"))
    assert (host.board.revoked, host.board.epoch) == ({}, 3)


def test_an_entry_behind_a_gap_is_obeyed_at_once_and_acknowledged_when_the_gap_is_known_to_be_empty() -> None:
    host = ready()
    host.hear(host.journal.put("revocation/agent:a", revocation("a")))
    applied = host.obey.applied_ns
    host.journal.put("agent/b", {"owner": "o"})
    host.journal.remove("agent/b")
    host.later(9).hear(host.journal.put("revocation/agent:c", revocation("c")), host.journal.remove("revocation/agent:a"))
    assert (host.board.revoked, host.board.epoch, host.ack().epoch) == ({"agent:c": 0}, 2, 2)
    assert host.obey.applied_ns == applied
    host.hear(host.journal.beat())
    assert (host.board.revoked, host.board.epoch, host.ack().epoch) == ({"agent:c": 0}, 6, 6)
    assert host.obey.state == "ready"


def test_a_gap_with_something_in_it_is_not_acknowledged() -> None:
    host = ready()
    missed = host.journal.put("revocation/agent:a", revocation("a"))
    host.hear(host.journal.put("revocation/agent:b", revocation("b")), host.journal.beat())
    assert (host.board.revoked, host.ack().epoch, host.obey.broken) == ({"agent:b": 0}, 1, True)
    host.obey.begin()
    first, _, last = map(host.journal.wire, host.journal.log)
    host.hear(first, missed, last, host.journal.beat())
    assert (host.board.revoked, host.ack().epoch, host.obey.state) == ({"agent:a": 0, "agent:b": 0}, 3, "ready")


def test_pause_and_resume_are_on_the_board_at_once() -> None:
    host = ready()
    host.hear(host.journal.put("pause", {"reason": "fire"}))
    assert host.board.paused
    host.hear(host.journal.remove("pause"))
    assert not host.board.paused


def test_an_entry_that_doors_do_not_read_moves_the_epoch_all_the_same() -> None:
    host = ready()
    host.hear(host.journal.put("agent/a", {"owner": "o"}))
    assert (host.board.epoch, host.ack().epoch) == (2, 2)


def test_epochs_that_left_nothing_behind_are_passed_with_the_heartbeat() -> None:
    """A new broker gets what is live, and not what came and went."""
    journal = registered()
    journal.put("revocation/agent:a", revocation("a"))
    journal.remove("revocation/agent:a")
    assert ready(journal).board.epoch == 3
    host = Host(journal).hear(*journal.whole(), journal.beat(epoch=3))
    journal.log.append(dataclasses.replace(journal.log[-1], epoch=4))
    host.hear(journal.beat(epoch=4))
    assert (host.board.epoch, host.board.steps[-1]) == (4, "change")


def test_a_not_before_that_is_no_number_revokes_everything() -> None:
    host = ready()
    host.hear(host.journal.put("revocation/agent:a", revocation("a", not_before="soon")))
    assert host.board.revoked == {"agent:a": 0}


# -- freshness -----------------------------------------------------------------------------------------------------------


def test_it_is_fresh_from_the_time_before_which_the_heartbeat_was_not_there() -> None:
    host = ready()
    host.later(1_000).hear(host.journal.beat(), written=host.now - 300)
    assert host.board.until_ns == host.now - 300 + STALE_NS


def test_without_a_new_heartbeat_it_is_stale_and_says_so() -> None:
    host = ready().later(STALE_NS - 1)
    assert host.obey.state == "ready"
    host.later(1)
    assert (host.obey.state, host.obey.why) == ("stale", "no new heartbeat of control")
    host.hear(host.journal.beat())
    assert host.obey.state == "ready"


def test_a_heartbeat_that_was_in_the_log_for_an_hour_makes_nothing_fresh() -> None:
    host = ready()
    until = host.board.until_ns
    host.later(3_600_000).hear(host.journal.beat(), written=1_000_000)
    assert (host.board.until_ns, host.obey.state) == (until, "stale")


def test_it_is_fresh_only_when_the_heartbeat_is_on_the_disk() -> None:
    journal = registered()
    host = Host(journal).hear(*journal.whole(), journal.beat(), keep=False)
    assert (host.board.steps, host.obey.state) == (["replace"], "joining")
    first = host.obey.floors()
    assert first is not None
    host.later(100).hear(journal.beat(), keep=False)
    host.obey.kept(first)
    assert host.board.until_ns == 1_000_000 + STALE_NS, "the second heartbeat is not on the disk yet"
    host.keep()
    assert host.board.until_ns == 1_000_100 + STALE_NS


def test_the_time_of_freshness_never_goes_back() -> None:
    host = ready()
    until = host.board.until_ns
    host.hear(host.journal.beat(), written=host.now - 400)
    assert host.board.until_ns == until


def test_a_board_without_room_is_stale_until_it_has_been_given_everything() -> None:
    host = ready()
    host.board.room = False
    host.hear(host.journal.put("revocation/agent:a", revocation("a")), host.journal.beat())
    assert (host.obey.broken, host.obey.state) == (True, "stale")
    assert host.obey.why == "board.table2: cannot be made: no space left on device"
    assert (host.ack().epoch, host.board.until_ns) == (1, 0)
    host.obey.begin()
    host.hear(*host.journal.whole(), host.journal.beat())
    assert (host.obey.broken, host.obey.state) == (True, "stale"), "there is still no room"
    host.board.room = True
    host.obey.begin()
    host.hear(*host.journal.whole(), host.journal.beat())
    assert (host.board.revoked, host.obey.state, host.obey.why, host.ack().epoch) == ({"agent:a": 0}, "ready", "", 2)


# -- policies ------------------------------------------------------------------------------------------------------------


def policy(digest: str) -> dict[str, Any]:
    return {"digest": digest, "bytes": 10, "packed": 8, "chunks": 1, "policies": 1, "origin": "files"}


def test_it_is_not_fresh_before_the_policies_are_here() -> None:
    journal = registered()
    journal.put("policy/main", policy(NEW))
    host = Host(journal).hear(*journal.whole(), journal.beat())
    assert (host.obey.wanted_policy, host.board.policy, host.obey.state) == (NEW, b"", "joining")
    assert host.obey.wanted["chunks"] == 1
    assert host.obey.why == f"the policy bundle of digest {NEW[:12]} is not here yet"
    host.obey.policy_ready(NEW)
    host.later(1)
    assert (host.board.policy.hex(), host.obey.state) == (NEW, "ready")


def with_policy() -> Host:
    journal = registered()
    journal.put("policy/main", policy(OLD))
    host = Host(journal).hear(*journal.whole(), journal.beat())
    host.obey.policy_ready(OLD)
    return host.later(0)


def test_a_revocation_does_not_wait_for_policies_that_are_on_their_way() -> None:
    host = with_policy()
    host.hear(host.journal.put("policy/main", policy(NEW)), host.journal.put("revocation/agent:a", revocation("a")))
    assert (host.board.policy.hex(), host.board.revoked, host.board.epoch) == (OLD, {"agent:a": 0}, 4)
    host.obey.policy_ready(NEW)
    assert (host.board.policy.hex(), host.board.revoked) == (NEW, {"agent:a": 0})


def test_policies_that_do_not_come_make_it_stale() -> None:
    host = with_policy()
    host.hear(host.journal.put("policy/main", policy(NEW)))
    for _ in range(6):
        host.later(STALE_NS // 5).hear(host.journal.beat())
    assert host.obey.state == "stale"
    assert host.obey.why == f"the policy bundle of digest {NEW[:12]} is not here yet"
    host.obey.policy_ready(NEW)
    assert host.later(0).obey.state == "ready"


def test_policies_that_nobody_wants_now_are_not_taken() -> None:
    host = with_policy()
    steps = list(host.board.steps)
    host.obey.policy_ready(NEW)
    host.obey.policy_ready(OLD)
    assert (host.board.policy.hex(), host.board.steps) == (OLD, steps)


def test_joining_again_keeps_the_policies_in_force_until_the_others_are_here() -> None:
    host = with_policy()
    host.journal.put("policy/main", policy(NEW))
    host.obey.begin()
    host.hear(*host.journal.whole(), host.journal.beat())
    assert (host.board.policy.hex(), host.obey.wanted_policy) == (OLD, NEW)


def test_without_an_entry_there_are_no_policies() -> None:
    host = with_policy()
    host.hear(host.journal.remove("policy/main"))
    assert (host.obey.wanted_policy, host.board.policy) == ("", b"")


# -- acknowledgements ----------------------------------------------------------------------------------------------------


def test_an_acknowledgement_has_the_host_and_each_door() -> None:
    host = with_policy()
    ack = host.ack(("00000001000000ab", 1, b"", 4), ("00000001000000aa", 2, bytes.fromhex(OLD), 5))
    assert (ack.host, ack.boot, ack.state, ack.epoch, ack.policy_digest) == (HOST, BOOT, "ready", 2, OLD)
    assert (ack.counter, ack.lag_records, ack.applied_ns, ack.said_ns) == (1, 3, host.now + 7, 9)
    assert [(door.boot[-2:], door.epoch, door.policy_digest) for door in ack.doors] == [("aa", 2, OLD), ("ab", 1, "")]


def test_nothing_is_acknowledged_before_it_is_on_the_disk() -> None:
    host = ready()
    host.hear(host.journal.put("revocation/agent:a", revocation("a")), keep=False)
    door = ("00000001000000aa", 2, b"", 5)
    assert (host.board.epoch, host.ack(door).epoch, host.ack(door).doors[0].epoch) == (2, 1, 1)
    host.keep()
    assert (host.ack(door).epoch, host.ack(door).doors[0].epoch) == (2, 2)


def test_a_host_that_ends_says_so() -> None:
    ack = ready().obey.ack(boot=BOOT, doors=(), lag_records=0, said_ns=9, stopped=True)
    assert (ack.state, ack.why) == ("stopped", "")


def test_what_keeps_it_from_reading_comes_first() -> None:
    host = Host(registered())
    host.obey.trouble = "the broker is not up"
    assert host.obey.why == "the broker is not up"
