"""Each planted bug is caught by the rule that it breaks. A simulation that would not notice is no proof of anything."""

import pytest

from tests.sim.control.mutants import PLANTED
from tests.sim.control.world import World
from tests.sim.telling import catch

SEEDS_MAX = 400

QUICK = {
    "freshness from when a heartbeat is read", "an epoch that is acknowledged before it is kept",
    "entries that are not verified", "a pause that is lost in a join", "policies that are named before they are here",
    "no look before the record", "policies that are acknowledged too early", "a stale board that is believed",
    "a host that cannot begin and is not heard", "floors that are forgotten", "a digest that is not compared",
    "agents that are written behind the board", "agents that are read once",
    "the epoch of a forged removal", "a revocation that is never lifted", "a removed host that goes on",
}  # fmt: skip
"""Those that a few histories catch; the others, in `make soak`, take minutes."""


@pytest.mark.parametrize("bug", [pytest.param(bug, marks=() if bug in QUICK else pytest.mark.soak) for bug in PLANTED])
def test_it_catches(bug: str) -> None:
    catch(World, PLANTED, bug, SEEDS_MAX)
