"""Print one history: `python -m tests.sim.control --seed N`. Exit 1 when a rule does not hold in it."""

import sys

from tests.sim.control.world import World
from tests.sim.telling import print_history


def figures(world: World) -> str:
    """What was made."""
    return f"{world.truth.epoch} epochs, {world.truth.decided} decisions"


if __name__ == "__main__":
    sys.exit(print_history(World, "tests.sim.control", "control", figures))
