"""Print one history: `python -m tests.sim.control --seed N`. Exit 1 when a rule does not hold in it."""

import argparse
import sys

from tests.sim.control.world import World
from tests.sim.story import Broken
from tests.sim.world import scratch


def main() -> int:
    """Tell one seed's story, the faults that came up in it, and the rule that broke, if one did."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.control", description="print one simulated history of control")
    parser.add_argument("--seed", type=int, default=0, help="which history (default 0)")
    seed = parser.parse_args().seed
    broken = ""
    with scratch() as folder, World(seed, folder) as world:
        try:
            world.run()
        except Broken as fault:
            broken = str(fault)
    print("\n".join(world.story.events))
    print(f"\n{world.truth.epoch} epochs, {world.truth.decided} decisions; "
          + ", ".join(f"{kind} {count}" for kind, count in sorted(world.story.seen.items())))  # fmt: skip
    print(f"BROKEN {broken}" if broken else "every rule holds")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
