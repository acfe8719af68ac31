"""What goes wrong, beside what each part does badly by itself."""

from typing import TYPE_CHECKING

from tests.sim.control import attacks

if TYPE_CHECKING:
    from tests.sim.control.world import World


def broker_fails(world: "World") -> None:
    """The broker is away."""
    if "broker" in world.faults and world.broker.up:
        world.broker.stop()


def cut(world: "World") -> None:
    """Somebody cannot reach it."""
    if "cuts" in world.faults:
        victims = [*world.hosts.values(), *([world.control] if world.control else [])]
        if victims:
            victim = world.story.pick(victims)
            victim.cut = True
            world.story.fault("control cut off" if victim is world.control else "host cut off")


def stall(world: "World") -> None:
    """Nobody runs for a while: what is in buffers grows old."""
    if "stalls" in world.faults:
        ms = world.story.pick((1_000, 3_000, 6_000, 20_000))
        world.story.fault("stall", f"{ms} ms")
        world._pass(ms)


def disk_fails(world: "World") -> None:
    """A host's disk is full."""
    if "disk" in world.faults and world.hosts:
        world.story.pick(list(world.hosts.values())).disk_full = True


def repair(world: "World") -> None:
    """Somebody puts right what is broken."""
    if not world.broker.up:
        return world.broker.start()
    for host in world.hosts.values():
        host.cut = host.disk_full = False
    if world.control is not None:
        world.control.cut = False


def compact(world: "World") -> None:
    """Kafka compacts the log."""
    if "compaction" in world.faults and not world.broker.embedded and world.broker.up:
        world.broker.compact()


def attacker(world: "World") -> None:
    """Somebody without a key writes something."""
    if "attacks" in world.faults:
        attacks.attack(world.story, world.truth, world.broker, list(world.journal.keys.values()))
