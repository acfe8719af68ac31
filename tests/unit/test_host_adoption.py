"""A host that takes over another one's spools: what it must not do again with that host's lanes."""

from pathlib import Path

from enforcers.host.host import _Host
from enforcers.host.keeper import Keeper
from schemas.config import Config
from schemas.home import Home
from schemas.process import Lock


def test_a_host_that_is_adopted_twice_gets_lanes_of_its_own_each_time(tmp_path: Path) -> None:
    """Each engine numbers its lanes from 1: in the lanes of the first time its new frames would pass for copies."""
    home = Home(tmp_path)
    host = _Host(home, Config(), "enforce-1", 0, True, Keeper(home, Config(), "enforce-1", doors=0, port=0))
    boots = []
    for _ in range(2):
        lock = Lock(home.host("replay-1") / "lock")
        assert lock.take()
        engine = host._engine("replay-1", lock)
        boots.append(engine.lanes.lane(0).host_boot)
        engine.close()
    assert len({*boots, host._boot}) == 3
