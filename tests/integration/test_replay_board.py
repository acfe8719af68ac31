"""Door processes on a board that a test writes: what they do while it is stale, paused or another, and when one is stopped."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ext.board import BoardWriter
from pipeline.cli.replaydoors import DoorDied
from schemas.bundle import Bundle, Rule
from schemas.errors import OperatorFault
from schemas.records import Verdict
from tests.support.boarded import HOST, Boarded, Done

ALL = Bundle(rules=(Rule(id="all", forbid=False),))
NONE = Bundle(rules=(Rule(id="none", forbid=True),))
AGENT = "agent:a0"

Make = Callable[..., Boarded]


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Make]:
    """Make a board with doors on `lines` lines, half of them of the agent a0."""
    made: list[Boarded] = []

    def make(lines: int, *, doors: int = 1, rate: float = 0.0, bundle: Bundle = ALL) -> Boarded:
        path = tmp_path / "calls.jsonl"
        with path.open("w") as out:
            for n in range(lines):
                line = {"time": n, "agent": f"a{n // doors % 2}", "action": "http:GET", "resource": 'Host::"h.example.com:443"'}
                out.write(json.dumps(line) + "\n")
        made.append(Boarded(tmp_path / "home", path, doors=doors, bundle=bundle, rate=rate))
        return made[0]

    yield make
    for host in made:
        host.__exit__(None, None, None)


def of_agent(host: Boarded, records: list[Done]) -> list[Done]:
    refs = {ref for ref, call in host.calls().items() if call.agent == "a0"}
    return [done for done in records if done.ref in refs]


def test_a_stopped_door_has_acknowledged_nothing_and_decides_nothing_before_it_has_caught_up(board: Make) -> None:
    host = board(10_000, doors=4, rate=2000)
    host.start()
    host.until_called(20)
    os.kill(host.pid(1), signal.SIGSTOP)
    stopped = host.doors.doors[1].entry.boot
    time.sleep(0.05)
    epoch = host.revoke(AGENT)
    written = host.states[-1].written_ns
    host.until(lambda: host.acknowledged(epoch, set(host.said) - {stopped}), 10, "the others acknowledge")
    for _ in range(100):
        host.refresh()
        host.look()
        time.sleep(0.002)
    assert not host.acknowledged(epoch, {stopped})
    os.kill(host.pid(1), signal.SIGCONT)
    host.until(lambda: host.acknowledged(epoch), 10, "the stopped door acknowledges")
    records = of_agent(host, host.finish())
    for door in host.said:
        own = [done for done in records if done.door == door]
        assert {done.verdict for done in own if done.recorded_ns < written} >= {Verdict.ALLOW}
        after = [done for done in own if done.recorded_ns > written]
        assert after
        assert {(done.verdict, done.reason) for done in after} == {(Verdict.DENY, "revoked")}


def test_while_the_board_is_stale_nothing_is_recorded_and_nothing_refused_for_that(board: Make) -> None:
    host = board(3000, doors=2, rate=3000)
    host.start()
    host.until_called(50)
    host.board.fresh(0)
    since = time.time_ns()
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        host.look()
        time.sleep(0.005)
    assert "cannot show that it knows every revocation: is control running?" in host.doors.waits()
    until = time.time_ns()
    records = host.finish()
    assert sorted(done.ref for done in records) == list(range(1, 3001))
    # one that was decided just before, by each door
    assert len([done for done in records if since + 20_000_000 < done.recorded_ns < until]) <= 2
    assert {done.reason for done in records} == {"permit"}


def test_a_pause_refuses_every_call_until_it_is_over(board: Make) -> None:
    host = board(9000, doors=2, rate=3000)
    host.start()
    host.until_called(50)
    paused = host.pause(True)
    host.until(lambda: host.acknowledged(paused), 10, "every door is paused")
    time.sleep(0.2)
    resumed = host.pause(False)
    records = host.finish()
    assert {(done.verdict, done.reason) for done in records if done.epoch == paused} == {(Verdict.DENY, "paused")}
    assert {done.reason for done in records if done.epoch != paused} == {"permit"}
    assert {done.door for done in records if done.epoch == resumed} == set(host.said)


def test_a_door_without_a_call_acknowledges_all_the_same(board: Make) -> None:
    host = board(100, doors=2, rate=0.2)
    host.start()
    for number in range(20):
        epoch = host.revoke(f"agent:x{number}")
        host.until(lambda: host.acknowledged(epoch), 5, "idle doors acknowledge")  # noqa: B023
        assert {said[-1].epoch for said in host.said.values()} == {epoch}
        late = [said[-1].applied_ns - host.states[-1].written_ns for said in host.said.values()]
        assert max(late) < 1_000_000_000


def test_the_old_policies_decide_until_the_new_ones_are_ready(board: Make) -> None:
    many = Bundle(rules=tuple(Rule(id=f"p{n}", forbid=True, resource=("==", f'Host::"h{n}:1"')) for n in range(20_000)))
    last = Bundle(rules=(*many.rules, Rule(id="last", forbid=True)))
    host = board(60_000, doors=2, rate=2000)
    digest = host.put(last)
    host.start()
    host.until_called(50)
    first = host.states[0].policy
    epoch = host.decide_by(digest)
    host.until(lambda: host.acknowledged(epoch), 5, "the epoch is acknowledged at once")
    host.until(lambda: all(said[-1].policy == digest for said in host.said.values()), 25, "the policies follow")
    host.until_called(max(int(door.said["calls"]) for door in host.doors.doors) + 100)
    host.doors.stop(host.refresh, lambda: False)
    records = host.recorded()
    for door, said in host.said.items():
        own = [done for done in records if done.door == door]
        assert [word.policy for word in said if word.epoch == epoch] == [first, digest]
        swapped = said[-1].applied_ns
        assert {done.policy_digest for done in own if done.recorded_ns < swapped} == {first}
        assert {(done.policy_digest, done.reason) for done in own if done.recorded_ns > swapped} == {(digest, "forbid")}
        meanwhile = [done for done in own if done.epoch == epoch and done.policy_digest == first]
        assert len(meanwhile) > 10  # nobody waits while they are made ready
        assert {done.reason for done in meanwhile} == {"permit"}


def test_policies_that_are_not_there_leave_the_old_ones_in_use_and_are_said(board: Make) -> None:
    host = board(60_000, rate=2000)
    host.start()
    digest = host.put(NONE)
    path = host.home.host(HOST) / "bundle" / f"{digest}.json"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"none", b"nope"))
    epoch = host.decide_by(digest)
    host.until(lambda: host.acknowledged(epoch), 5, "the epoch is acknowledged")
    host.until(lambda: "holds policies of digest" in str(host.doors.doors[0].said["fault"]), 20, "the fault is said")
    assert host.said[host.doors.doors[0].entry.boot][-1].policy == host.states[0].policy
    path.write_bytes(data)
    host.until(lambda: host.said[host.doors.doors[0].entry.boot][-1].policy == digest, 20, "they are tried again")
    host.until_called(int(host.doors.doors[0].said["calls"]) + 100)
    host.doors.stop(host.refresh, lambda: False)
    assert {done.reason for done in host.recorded()} == {"permit", "forbid"}


def test_without_policies_nothing_is_permitted(board: Make) -> None:
    host = board(1000, rate=500)
    host.start()
    epoch = host.decide_by("")
    host.until(lambda: host.acknowledged(epoch), 5, "the epoch is acknowledged")
    records = host.finish()
    assert {done.reason for done in records if done.epoch == epoch} == {"no-permit"}


def test_a_door_goes_over_to_the_board_of_its_next_host_and_obeys_nothing_in_between(board: Make) -> None:
    """The host dies; the next one writes another board, which it first has to fill."""
    host = board(6000, doors=2, rate=3000)
    host.start()
    host.until_called(50)
    epoch = host.revoke(AGENT)
    host.until(lambda: host.acknowledged(epoch), 5, "the revocation is acknowledged")
    host.board = BoardWriter(str(host.home.board(HOST)), 2)
    since = time.time_ns()
    time.sleep(0.3)
    filled = time.time_ns()
    host.board.replace([(AGENT, 0)], epoch=epoch, paused=False, policy=bytes.fromhex(host.states[-1].policy))
    records = host.finish()
    assert len([done for done in records if since + 20_000_000 < done.recorded_ns < filled]) <= 2
    assert {done.reason for done in of_agent(host, records) if done.epoch >= epoch} == {"revoked"}
    for said in host.said.values():
        assert [word.epoch for word in said] == sorted(word.epoch for word in said)


def test_a_killed_door_ends_the_run_and_the_others_close(board: Make) -> None:
    host = board(4000, doors=3, rate=1500)
    host.start()
    host.until_called(20)
    name = host.doors.doors[1].name
    os.kill(host.pid(1), signal.SIGKILL)
    with pytest.raises(DoorDied, match=rf"^{name} was killed by SIGKILL$"):
        host.until(lambda: False, 10, "the death is seen")
    host.doors.stop(host.refresh, lambda: False)
    left = host.progress.settle()
    assert [door.boot for door in left] == [host.doors.doors[1].entry.boot]
    for door in (host.doors.doors[0], host.doors.doors[2]):
        refs = [done.ref for done in host.recorded() if done.door == door.entry.boot]
        assert refs == list(range(door.entry.part, 4001, 3))[: len(refs)]
        assert door.entry.last_ref == refs[-1]


def test_a_file_that_changes_meanwhile_ends_the_run(board: Make) -> None:
    host = board(30_000, rate=9000)
    host.start()
    with open(host.file.path, "a") as file:
        file.write("{}\n")
    with pytest.raises(OperatorFault, match=r"calls\.jsonl: was changed while it was read \(\d+ bytes then, \d+ now\)"):
        host.until(lambda: False, 20, "the change is seen")


def test_a_file_that_is_moved_away_is_still_the_one_that_was_checked(board: Make) -> None:
    host = board(3000, doors=2, rate=3000)
    host.start()
    os.rename(host.file.path, host.file.path + ".gone")
    Path(host.file.path).write_text("{}\n")
    assert sorted(done.ref for done in host.finish()) == list(range(1, 3001))
