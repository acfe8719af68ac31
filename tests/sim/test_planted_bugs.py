"""Each planted bug is caught by the rule that it breaks. A simulation that would not notice is no proof of anything."""

import pytest

from tests.sim.mutants import PLANTED
from tests.sim.telling import catch
from tests.sim.world import World

EVERY = 3
"""Every third bug is planted with each change, all of them in the long tests."""

SEEDS_MAX = 150
"""More than twice what the rarest of them needed when it was written (58)."""


@pytest.mark.parametrize("bug", [
    pytest.param(bug, marks=pytest.mark.soak if number % EVERY else ()) for number, bug in enumerate(PLANTED)
])
def test_it_catches(bug: str) -> None:
    catch(World, PLANTED, bug, SEEDS_MAX)
