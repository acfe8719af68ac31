"""Each planted bug is caught by the rule that it breaks. A simulation that would not notice is no proof of anything."""

import pytest

from tests.sim.control.mutants import PLANTED
from tests.sim.control.world import World
from tests.sim.telling import catch

SEEDS_MAX = 400


@pytest.mark.parametrize("bug", PLANTED)
def test_it_catches(bug: str) -> None:
    catch(World, PLANTED, bug, SEEDS_MAX)
