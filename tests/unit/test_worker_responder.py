"""What is found is answered once, whoever is away meanwhile and whatever dies in between."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

import pytest

from pipeline.core.respond import Response, Standing
from pipeline.shells.controlclient import ALREADY, Change, Refused
from pipeline.shells.worker import responder as module
from pipeline.shells.worker.responder import Responder
from pipeline.shells.worker.sink import StoreAway
from schemas.config import Respond
from schemas.errors import OperatorFault, PeerFault
from schemas.findings import Finding
from tests.support.found import NOW_US, finding
from tests.support.registry import until

RULE = Respond(name="r", finding="leak", revoke="agent")
ROOTED = Respond(name="roots", finding="leak", revoke="root")


class World:
    """Control, its log as this worker knows it, and the store: plain dictionaries that outlive a responder.

    `faults` are raised by the next questions, by name; of control's, `behind` says whether the change is made all the same.
    """

    def __init__(self) -> None:
        self.changes: dict[str, tuple[int, dict[str, Any]]] = {}
        self.epoch = 0
        self.live: dict[str, Standing] = {}
        self.unheard: set[str] = set()
        """Selectors whose revocation this worker's log does not say yet."""
        self.false: set[tuple[str, str]] | None = set()
        self.rows: list[dict[str, Any]] = []
        self.notices: list[Finding] = []
        self.findings: list[Finding] = []
        self.faults: dict[str, list[Exception]] = {}
        self.behind = False
        self.asked = 0

    def _fault(self, where: str) -> None:
        if self.faults.get(where):
            raise self.faults[where].pop(0)

    def change_once(self, change_id: str, do: str, /, **fields: Any) -> Change:
        self.asked += 1
        if not self.behind:
            self._fault("control")
        assert do == "revoke"
        text = f"{fields['kind']}{'*' if fields['cascade'] else ''}:{fields['name']}"
        if change_id not in self.changes:
            if text in self.live:
                raise Refused(f"`{text}` is revoked already", ALREADY)
            self.epoch += 1
            self.changes[change_id] = self.epoch, fields
            self.live[text] = Standing(self.epoch, NOW_US // 1_000_000 + fields["for_s"], fields["reason"])
        if self.behind:
            self._fault("control")
        return Change(epoch=self.changes[change_id][0], result={})

    def excepted(self) -> Collection[tuple[str, str]] | None:
        return self.false

    def standing(self, selector: str) -> Standing | None:
        return None if selector in self.unheard else self.live.get(selector)

    def keep_responses(self, rows: Sequence[dict[str, Any]]) -> None:
        self._fault("keep")
        self.rows += rows

    def keep_notice(self, finding: Finding, worker: str) -> None:
        self.notices.append(finding)

    def responses(self, since_us: int, findings: Sequence[str]) -> list[Response]:
        self._fault("responses")
        rows = [row for row in self.rows if row["finding"] in findings or row["time"] > since_us]
        return [
            Response(**{name: row[name] for name in ("finding", "rule", "selector", "state", "epoch", "for_s", "why")},
                     time_us=row["time"]) for row in rows
        ]  # fmt: skip

    def roots(self, calls: Sequence[str]) -> list[str]:
        return ['User::"alice"']

    def lately(self, since_us: int, score: float, limit: int) -> list[Finding]:
        self._fault("lately")
        return [one for one in self.findings if one.ended_us > since_us and one.score >= score][:limit]

    def said(self) -> list[tuple[str, str, int]]:
        return [(row["selector"], row["state"], row["epoch"]) for row in self.rows]


class Bench:
    def __init__(self, world: World, rules: Sequence[Respond] = (RULE,)) -> None:
        self.world = world
        self.responder = Responder(rules, slot="work-1", control=world, keys=world, store=world, now_us=lambda: NOW_US)
        self.task = asyncio.create_task(self.responder.run())

    async def act(self, *findings: Finding) -> None:
        """As the lookout: a finding is a row before it is answered."""
        self.world.findings += findings
        await self.responder.act(findings)

    def kill(self) -> None:
        self.task.cancel()
        self.responder._thread.shutdown()


def play(story: Callable[[Bench], Awaitable[None]], *, world: World | None = None, rules: Sequence[Respond] = (RULE,)) -> World:
    there = world or World()

    async def main() -> None:
        bench = Bench(there, rules)
        try:
            async with asyncio.timeout(20):
                await story(bench)
        finally:
            bench.kill()

    asyncio.run(main())
    return there


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.005)
    monkeypatch.setattr(module, "RETRY_MAX_S", 0.02)


def test_a_finding_is_answered_before_who_brings_it_goes_on() -> None:
    async def story(bench: Bench) -> None:
        await bench.act(finding())
        assert bench.world.said() == [("agent:reader", "revoked", 1)]
        await bench.act(finding(version=9), finding("writer", score=50.0))

    world = play(story)
    fields = world.changes.popitem()[1][1]
    assert (fields["kind"], fields["name"], fields["for_s"], fields["only_new"]) == ("agent", "reader", 3600, True)
    assert finding().id in fields["reason"]
    assert world.asked == 1, "neither a newer version nor a low score is asked about"


def test_the_roots_of_a_findings_calls_are_asked_of_the_store() -> None:
    world = play(lambda bench: bench.act(finding()), rules=[ROOTED])
    assert world.said() == [('principal:User::"alice"', "revoked", 1)]


@pytest.mark.parametrize("behind", [False, True])
def test_control_that_is_away_is_asked_again_until_it_answers_and_it_is_one_change(behind: bool) -> None:
    async def story(bench: Bench) -> None:
        bench.world.faults["control"] = [PeerFault("away"), OperatorFault("control.url: is not https"), PeerFault("away")]
        bench.world.behind = behind
        await bench.act(finding())

    world = play(story)
    assert world.said() == [("agent:reader", "revoked", 1)]
    # where it was made all the same, the log says so before control answers
    assert (world.asked, world.epoch) == (1 if behind else 4, 1)


def test_who_brings_findings_does_not_wait_for_control_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ACT_S", 0.05)

    async def story(bench: Bench) -> None:
        bench.world.faults["control"] = [PeerFault("away")] * 20
        await bench.act(finding())
        assert bench.world.rows == []
        assert bench.responder.waits_for == "responses: away"
        await until(lambda: bench.world.said() == [("agent:reader", "revoked", 1)])
        await until(lambda: bench.responder.waits_for == "")

    play(story)


@pytest.mark.parametrize("where", ["responses", "keep"])
def test_a_store_that_is_away_makes_no_second_change(where: str) -> None:
    async def story(bench: Bench) -> None:
        bench.world.faults[where] = [StoreAway("away"), StoreAway("away")]
        await bench.act(finding())

    world = play(story)
    assert (world.said(), world.epoch) == ([("agent:reader", "revoked", 1)], 1)


@pytest.mark.parametrize("heard", [False, True])
def test_a_worker_that_dies_behind_controls_answer_is_followed_by_one_that_knows_the_change(heard: bool) -> None:
    async def dies(bench: Bench) -> None:
        bench.world.faults["keep"] = [StoreAway("away")] * 1000
        acting = asyncio.create_task(bench.act(finding()))
        await until(lambda: bench.world.epoch == 1)
        acting.cancel()

    async def follows(bench: Bench) -> None:
        bench.world.faults.clear()
        await until(lambda: bool(bench.world.rows))

    world = play(dies)
    if not heard:  # its log is not as far as control is
        world.unheard.add("agent:reader")
    play(follows, world=world)
    assert (world.said(), world.epoch) == ([("agent:reader", "revoked", 1)], 1)


def test_a_finding_whose_worker_died_before_it_asked_is_answered_by_the_next_start() -> None:
    world = World()
    world.findings = [finding(), finding("old", at_us=NOW_US - 2 * 3_600_000_000), finding("low", score=20.0)]
    play(lambda bench: until(lambda: bool(bench.world.rows)), world=world)
    assert world.said() == [("agent:reader", "revoked", 1)]


def test_nothing_is_answered_before_it_is_known_what_is_called_false() -> None:
    async def story(bench: Bench) -> None:
        bench.world.false = None
        acting = asyncio.create_task(bench.act(finding()))
        await until(lambda: bench.responder.waits_for != "")
        assert bench.world.asked == 0
        bench.world.false = {("leak", finding().subject)}
        await acting

    assert play(story).said() == [("", "excepted", 0)]


def test_what_somebody_revokes_in_the_same_moment_stays_and_others_do_not_wait_for_it() -> None:
    async def story(bench: Bench) -> None:
        world = bench.world
        world.live["agent:reader"] = Standing(7, 0, "by hand")
        world.unheard.add("agent:reader")
        acting = asyncio.create_task(bench.act(finding(score=99.0), finding("writer")))
        await until(lambda: world.said() == [("agent:writer", "revoked", 1)])
        assert bench.responder.waits_for.startswith("responses: `agent:reader` is revoked already")
        world.unheard.clear()
        await acting
        assert world.said()[1:] == [("agent:reader", "standing", 7)]
        assert world.live["agent:reader"] == (7, 0, "by hand")

    play(story)


def test_what_control_refuses_is_said_and_not_asked_again() -> None:
    async def story(bench: Bench) -> None:
        bench.world.faults["control"] = [Refused("all live entries would have 9 bytes, limit is 8", 400)]
        await bench.act(finding(), finding("writer", score=91.0))

    world = play(story)
    assert world.said() == [("agent:reader", "failed", 0), ("agent:writer", "revoked", 1)]
    assert world.rows[0]["why"] == "all live entries would have 9 bytes, limit is 8"


def test_the_limit_of_a_rule_stops_it_from_revoking_a_fleet_and_is_said_once() -> None:
    async def story(bench: Bench) -> None:
        await bench.act(*(finding(f"agent-{number}", score=90.0 + number / 20) for number in range(100)))
        await bench.act(*(finding(f"late-{number}") for number in range(100)))

    world = play(story)
    assert sorted(world.live) == [f"agent:agent-{number}" for number in range(95, 100)], "the worst first"
    assert [state for _, state, _ in world.said()] == 5 * ["revoked"] + 195 * ["limited"]
    assert [one.title for one in world.notices] == [
        "rule `r` has revoked 5 times in 3600 s, limit is 5: what is found now is not revoked"
    ]  # fmt: skip


def test_two_workers_together_keep_to_the_limit_of_a_rule() -> None:
    world = World()
    play(lambda bench: bench.act(*(finding(f"a-{number}") for number in range(4))), world=world)
    play(lambda bench: bench.act(*(finding(f"b-{number}") for number in range(4))), world=world)
    assert [state for _, state, _ in world.said()] == 5 * ["revoked"] + 3 * ["limited"]


def test_more_findings_than_may_wait_are_taken_from_the_store_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_MAX", 10)
    monkeypatch.setattr(module, "BATCH", 3)

    async def story(bench: Bench) -> None:
        bench.world.faults["responses"] = [StoreAway("away")]
        await bench.act(*(finding(f"agent-{number}") for number in range(20)))
        await until(lambda: len(bench.world.rows) >= 10 and not bench.responder._waiting)

    rows = play(story, rules=[Respond(name="r", finding="leak", revoke="agent", limit=100)]).rows
    assert len({row["selector"] for row in rows}) == len(rows)


def test_without_rules_nobody_is_asked_anything() -> None:
    async def story(bench: Bench) -> None:
        bench.world.faults["lately"] = [AssertionError("asked")]
        await bench.act(finding())
        await asyncio.sleep(0.02)
        assert not bench.task.done()

    assert play(story, rules=[]).asked == 0
