"""The end of a history: all faults are turned off, and within a bounded time everybody has the journal's state and says so."""

from typing import TYPE_CHECKING

from tests.sim.control.control import arrive
from tests.sim.control.host import HOSTS, SIGNERS
from tests.sim.control.troubles import repair
from tests.sim.story import Broken

if TYPE_CHECKING:
    from tests.sim.control.world import World

DRAIN_ROUNDS_MAX = 80
TRIES_MAX = 20


def heal_and_drain(world: "World") -> None:
    """No more faults: within DRAIN_ROUNDS_MAX rounds everybody has the journal's state and has said so."""
    world.story.tell("healed")
    _heal(world)
    for _ in range(DRAIN_ROUNDS_MAX):
        world._guarded(world.round)
        if _agree(world):
            break
    else:
        raise Broken("converges", _differences(world))
    _judge(world)


def _heal(world: "World") -> None:
    world.faults = set()
    if not world.broker.up:
        world.broker.start()
    world.late_acks.clear()
    for wire in world.loose:
        while wire.hand:
            key, value, *_ = wire.hand.popleft()
            arrive(world.broker, world.truth, world.story, wire.identity, key, value)
    world.loose.clear()
    repair(world)
    for host in world.hosts.values():
        host.may_die = False
    for door in world.doors:
        door.stopped = False
    if world.control is None:
        world._guarded(world._control_starts)
    assert world.control is not None
    world.control.sends_badly = world.control.books.may_die = False
    for _ in range(4):
        world._guarded(world.round)
    for name in HOSTS:
        if world.control.books.log.get(f"enforcer/{name}") is None:
            request = {"do": "enforcer-add", "name": name, "key": SIGNERS[name].public.hex()}
            world.control.books.make(request, f"request {world.number()}", "uid:tester")
        if not any(door.host == name for door in world.doors):
            world._door_starts(name)


def _agree(world: "World") -> bool:
    control = world.control
    assert control is not None
    return (
        control.ready
        and control.books.log.epoch == world.truth.epoch
        and all(h.feed.obey.state == "ready" and h.feed.obey.epoch == world.truth.epoch for h in world.hosts.values())
        and len(world.hosts) == len(HOSTS)
        and control.applied()
    )


def _differences(world: "World") -> str:
    control = world.control
    assert control is not None
    said = [f"{h.name} {h.feed.obey.state} {h.feed.obey.epoch}: {h.feed.obey.why}" for h in world.hosts.values()]
    reports = [(host["host"], host["applied"], host.get("state")) for host in control.heard.report(world.truth.epoch)]
    return f"epoch {world.truth.epoch}, control has published {control.epoch}; {'; '.join(said)}; it has heard {reports}"


def _judge(world: "World") -> None:
    for host in world.hosts.values():
        control = world.control
        assert control is not None
        if host.feed.obey.follower.digest() != control.books.log.digest():
            raise Broken("converges", f"{host.name} has another digest than control")
    before = world.truth.decided
    for door in world.doors:
        for _ in range(TRIES_MAX):
            world._guarded(door.call)
            if world.truth.decided > before:
                break
            world._guarded(world.round)
        else:
            raise Broken("converges", f"door {door.boot} of {door.host} still waits")
        before = world.truth.decided
