"""One sink under a simulated clock: away for an hour, refusing, slow, lying, killed. Nothing is lost, nothing overtakes."""

from collections.abc import Callable

import pytest

from pipeline.core.siem.choice import ROWS_MAX, UPDATE_US
from pipeline.core.siem.feeder import BATCH_EVENTS_MAX, POLL_S, Batch
from tests.support.siemworld import AGENTS, KINDS, START_S, World

HOUR_S = 3600.0


def life(world: World, *, late: bool = False) -> Callable[[], None]:
    """Things happen, about one each eight seconds."""
    last = [world.now_s]

    def each() -> None:
        while world.now_s - last[0] >= 8.0:
            last[0] += 8.0
            rng, late_s = world.rng, (world.rng.choice([0, 0, 0, 1, 20, 100]) if late else 0)
            agent = rng.choice(AGENTS)
            match rng.randrange(8):
                case 0 | 1 | 2:
                    world.finding(rng.randrange(30), late_s=late_s)
                case 3:
                    world.finding(rng.randrange(30), score=95.0, severity=rng.choice(["high", "critical"]))
                case 4:
                    numbers = [one for one in world._versions if not late]
                    world.response(rng.choice(numbers)) if numbers else world.revocation(agent)
                case 5:
                    world.revocation(agent, late_s=late_s)
                case _:
                    if world.refusals:
                        world.frame(agent, rng.choice([1, 3, 60]), late_s=late_s)

    return each


def settle(world: World) -> None:
    """Nothing happens any more; what waits comes out."""
    world.take = lambda world, batch: ""
    world.run(2 * UPDATE_US / 10**6 + 200)
    world.check()
    assert world.feeder.waiting == 0
    assert world.feeder.lag_s(world.now_s) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_sink_that_is_away_for_an_hour_loses_nothing_and_keeps_the_order(kind: str) -> None:
    world = World(1, kind, refusals=kind == "file")
    world.run(60, each=life(world))
    sent = len(world.got)
    world.take = lambda world, batch: "the sink is away"
    world.run(HOUR_S, each=life(world))
    assert len(world.got) == sent > 0
    assert 3500 < world.feeder.lag_s(world.now_s) < 3700
    assert world.feeder.figures.waits_for == "the sink is away"
    assert world.feeder.figures.tries < HOUR_S / 20, "it is not asked all the time"
    world.take = lambda world, batch: ""
    back = world.now_s
    while world.feeder.lag_s(world.now_s) or world.feeder.figures.waits_for:
        world.step(world.now_s + 100)
    assert world.now_s - back < 60, "what has piled up goes out at once"
    settle(world)
    world.check_order()
    uids = [event["metadata"]["uid"] for event in world.got]
    assert len(uids) == len(set(uids)), "nobody lied and nobody died: no duplicate"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keeps", [False, True], ids=["lost", "kept but failed"])
def test_a_sink_that_answers_errors_loses_nothing_and_keeps_the_order(kind: str, keeps: bool) -> None:
    world = World(2, kind, keeps_refused=keeps)
    world.take = lambda world, batch: world.rng.choice(["", "503", "does not answer"])
    world.run(600, each=life(world))
    settle(world)
    world.check_order()


@pytest.mark.parametrize("kind", KINDS)
def test_a_sink_that_takes_its_time_loses_nothing_and_is_sent_larger_batches(kind: str) -> None:
    world = World(3, kind)
    sizes: list[int] = []

    def slow(world: World, batch: Batch) -> str:
        world.now_s += 45.0
        sizes.append(len(batch.events))
        return ""

    world.take = slow
    world.run(HOUR_S, each=life(world))
    settle(world)
    world.check_order()
    assert max(sizes) > 3


@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(12, 300))])
def test_whatever_happens_nothing_is_lost(seed: int) -> None:
    """Late rows, crashes between any two steps, a sink that fails, lies and is slow: every event arrives at least once."""
    world = World(seed, sorted(KINDS)[seed % len(KINDS)], refusals=seed % 3 == 0, keeps_refused=seed % 2 == 0)
    lives = life(world, late=True)

    def take(world: World, batch: Batch) -> str:
        world.now_s += world.rng.choice([0, 0, 0.1, 8])
        return world.rng.choice(["", "", "", "away"])

    def each() -> None:
        lives()
        if world.rng.random() < 0.02:
            world.crash()

    world.take = take
    world.run(900, each=each)
    world.take = lambda world, batch: ""
    world.run(300)
    settle(world)
    assert world.most <= ROWS_MAX + 5 * 60
    assert world.crashes or seed


def test_one_seed_tells_the_same_story_twice() -> None:
    stories = []
    for _ in range(2):
        world = World(7, "file")
        world.run(300, each=life(world, late=True))
        stories.append([event["metadata"]["uid"] for event in world.got])
    assert stories[0] == stories[1] != []


def test_a_crash_between_send_and_write_sends_the_same_again() -> None:
    world = World(1, "file")
    world.finding(1)
    world.revocation("ann")
    world.run(5)
    before = [event["metadata"]["uid"] for event in world.got]
    world.finding(2)

    def then_die(world: World, batch: Batch) -> str:
        world.take = lambda world, batch: ""
        return "died"

    world.keeps_refused, world.take = True, then_die
    world.run(POLL_S + 0.1)
    world.crash()
    world.run(30)
    world.check()
    uids = [event["metadata"]["uid"] for event in world.got]
    assert uids[: len(before)] == before
    assert uids[len(before) :] == [uids[-1]] * 2, "the one that was out came twice, and nothing else did"


def test_an_update_that_changes_nothing_much_waits_and_the_last_one_comes() -> None:
    world = World(1, "file")
    for _ in range(300):
        world.finding(1)
        world.run(1)
    assert 4 <= len(world.got) <= 7, "one a minute"
    world.finding(1, severity="low")
    world.run(3)
    assert world.got[-1]["severity_id"] == 2, "another severity comes at once"
    settle(world)


def test_a_false_finding_that_goes_on_is_closed_once() -> None:
    world = World(1, "file")
    world.finding(1)
    world.run(3)
    for _ in range(200):
        world.finding(1, state="false")
        world.run(1)
    world.run(200)
    assert [event["activity_id"] for event in world.got] == [1, 3]


def test_a_flood_goes_out_in_batches_and_is_never_held_whole() -> None:
    world = World(1, "file")
    sizes: list[int] = []

    def take(world: World, batch: Batch) -> str:
        sizes.append(len(batch.events))
        return ""

    world.take = take
    for number in range(700):
        world.finding(number)
    world.run(60)
    world.check()
    assert max(sizes) <= BATCH_EVENTS_MAX
    assert world.most <= ROWS_MAX


def test_a_sink_that_is_new_begins_with_the_last_hour() -> None:
    world = World(1, "file")
    world.now_s = START_S - 2 * HOUR_S
    world.finding(1)
    world.now_s = START_S - HOUR_S / 2
    world.finding(2)
    world.now_s = START_S
    world.run(5)
    assert [event["unmapped"]["domain"] for event in world.got] == ["d2.example"]
