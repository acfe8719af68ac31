"""Print one history: `python -m tests.sim --seed N`. Exit 1 when a rule does not hold in it."""

import sys

from tests.sim.telling import print_history
from tests.sim.world import World


def figures(world: World) -> str:
    """What was made."""
    records = sum(len(door.written) for door in world.truth.doors.values())
    return f"{records} records, {sum(map(len, world.store.frames.values()))} frames"


if __name__ == "__main__":
    sys.exit(print_history(World, "tests.sim", "the pipeline", figures))
