"""Each planted bug is caught by the rule that it breaks. A simulation that would not notice is no proof of anything."""

import pytest

from tests.sim.control.mutants import PLANTED
from tests.sim.control.world import World
from tests.sim.story import Broken
from tests.sim.world import scratch

SEEDS_MAX = 400


@pytest.mark.parametrize("bug", PLANTED)
def test_it_catches(bug: str) -> None:
    plant, rule = PLANTED[bug]
    others = set()
    with plant():
        for seed in range(SEEDS_MAX):
            with scratch() as folder, World(seed, folder) as world:
                try:
                    world.run()
                except Broken as fault:
                    if fault.rule == rule:
                        return
                    others.add(fault.rule)
    pytest.fail(f"{bug} breaks no rule `{rule}` in {SEEDS_MAX} histories, only {sorted(others)}")
