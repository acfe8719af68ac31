"""A door that knows its callers by the host's agents: it reads them before it acknowledges what the board says."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from enforcers.doors.obeyed import Obeyed
from tests.support.doorsite import Site


class Known:
    """Stands in for the file: counts how often it is read, and what the door had said by then."""

    def __init__(self, site: Site) -> None:
        self.whole = True
        self.said: list[int] = []
        self._site = site

    def __call__(self) -> bool:
        word = self._site.seen.read()
        self.said.append(word[0] if word else 0)
        return self.whole


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.spooler.abandon()


@pytest.fixture
def known(site: Site, tmp_path: Path) -> Known:
    known = Known(site)
    site.obeyed = Obeyed(tmp_path / "board", site.bundles, site.spooler.folder, known)
    return known


def test_the_agents_are_read_before_an_epoch_is_acknowledged(site: Site, known: Known) -> None:
    site.obeyed.look(wait=True)
    assert (known.said, site.seen.read()[0]) == ([0], 1)  # type: ignore[index]
    site.change("agent:a")
    site.obeyed.look()
    assert (known.said, site.seen.read()[0]) == ([0, 1], 2)  # type: ignore[index]


def test_they_are_not_read_while_the_board_says_nothing_new(site: Site, known: Known) -> None:
    for _ in range(5):
        site.obeyed.look(wait=True)
    assert known.said == [0]


def test_a_change_that_leaves_the_epoch_is_read_too_and_makes_a_call_be_decided_again(site: Site, known: Known) -> None:
    site.obeyed.look(wait=True)
    site.epoch -= 1
    site.change()
    site.obeyed.board.check(site.obeyed._nobody, site.obeyed._nobody)
    assert site.obeyed.follow()
    assert not site.obeyed.follow()
    assert known.said == [0, 1]


def test_nothing_is_acknowledged_or_decided_while_the_agents_are_not_known(site: Site, known: Known) -> None:
    site.obeyed.look(wait=True)
    assert site.obeyed.may_decide
    known.whole = False
    site.change("agent:a")
    site.obeyed.look()
    assert not site.obeyed.follow()
    assert (site.obeyed.may_decide, site.seen.read()[0]) == (False, 1)  # type: ignore[index]
    known.whole = True
    site.obeyed.look()
    assert (site.obeyed.may_decide, site.seen.read()[0]) == (True, 2)  # type: ignore[index]


def test_a_stale_board_is_not_followed(site: Site, known: Known) -> None:
    site.obeyed.look(wait=True)
    site.change("agent:a")
    site.fresh(0)
    site.obeyed.look()
    assert (known.said, site.seen.read()[0]) == ([0], 1)  # type: ignore[index]


def test_a_door_that_needs_no_agents_has_none(site: Site) -> None:
    site.obeyed.look(wait=True)
    assert site.obeyed.may_decide
