"""The doors that these tests call: one for all of a module, or one of a test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.egress import DoorProcess, EgressSite

LIMITS = {"header_ms": 600, "body_ms": 900, "answer_ms": 900, "idle_ms": 2000, "dial_ms": 1000, "stop_ms": 1500}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EgressSite]:
    """A door that no test of this module may change."""
    with EgressSite(tmp_path_factory.mktemp("egress") / "home", agents=("reader", "writer")) as made:
        made.start()
        yield made


@pytest.fixture
def door(shared: EgressSite) -> DoorProcess:
    return shared.doors[0]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[EgressSite]:
    """A home of the test's own, with short limits."""
    with EgressSite(tmp_path / "home", egress=LIMITS) as made:
        yield made
