"""Causes by time: what is learnt, when one is named, and when nobody is; and how well that does on real traces."""

from benchmarks.stitching import ARCHIVE, LOST_RIGHT_MIN, PRINCIPAL_MAX, Score, load
from pipeline.core.stitch.habits import MARGIN_US, Habits, Hop
from tests.support.data import data_folder

MS = 1_000


def ask(at: int, until: int = 0) -> Hop:
    """Somebody asks the shop."""
    return Hop("front", "shop", "GET", at * MS, (until or at + 100) * MS)


def pay(at: int, until: int = 0) -> Hop:
    """The shop asks the bank."""
    return Hop("shop", "bank", "POST", at * MS, (until or at + 20) * MS)


def ship(at: int) -> Hop:
    """The shop asks for a parcel."""
    return Hop("shop", "post", "POST", at * MS, (at + 20) * MS)


def taught() -> Habits:
    """The shop pays 10 ms after it is asked, and sends 5 ms after it has paid."""
    habits = Habits()
    for n in range(20):
        at = 1_000 * n
        habits.learn([ask(at), pay(at + 10), ship(at + 35)], [-1, 0, 0])
    return habits


def test_the_one_call_that_was_open_is_the_cause() -> None:
    assert taught().guess([ask(0), pay(10), ask(500), pay(510)], [-1, None, -1, None]) == [-1, 0, -1, 2]


def test_nobody_is_named_where_none_was_open() -> None:
    assert taught().guess([ask(0), pay(110)], [-1, None]) == [-1, None]
    assert taught().guess([ask(0), pay(104)], [-1, None]) == [-1, 0], "clocks differ a little"
    assert MARGIN_US == 5 * MS


def test_a_cause_whose_clock_is_a_little_late_is_found() -> None:
    assert taught().guess([pay(7), ask(10)], [None, -1]) == [1, -1]


def test_of_two_open_calls_the_one_that_would_go_on_so_is_named() -> None:
    hops = [ask(0), pay(10), ask(25), ship(35), pay(35)]
    assert taught().guess(hops, [-1, None, -1, None, None]) == [-1, 0, -1, 0, 2]


def test_of_two_calls_that_would_do_it_as_well_none_is_named() -> None:
    assert taught().guess([ask(0), ask(0), pay(10)], [-1, -1, None]) == [-1, -1, None]


def test_who_was_never_seen_to_be_called_begins_by_himself() -> None:
    assert taught().guess([ask(0), ask(5)], [None, None]) == [-1, -1]
    assert Habits().guess([ask(0), pay(10)], [None, None]) == [-1, -1]


def test_what_begins_by_itself_often_is_not_asked_for_a_cause() -> None:
    habits = taught()
    habits.learn([pay(n * 1_000) for n in range(5)], [-1] * 5)
    assert habits.guess([ask(0), pay(10)], [-1, None]) == [-1, None]


def test_nothing_is_caused_by_what_it_caused() -> None:
    """Two services that call each other at one time."""
    habits = Habits()
    there, back = Hop("a", "b", "GET", 0, 50 * MS), Hop("b", "a", "GET", MS, 40 * MS)
    habits.learn([there, back], [-1, 0])
    habits.learn([back, there], [-1, 0])
    for _ in range(30):
        habits.learn([Hop("x", "a", "GET", 0, 90 * MS), there, back], [-1, 0, 1])
        habits.learn([Hop("x", "b", "GET", 0, 90 * MS), back, there], [-1, 0, 1])
    found = habits.guess([there, back], [None, None])
    assert found in ([None, 0], [1, None], [None, None])


def test_with_every_header_lost_real_traces_are_put_together() -> None:
    stories = list(load(data_folder() / "nezha" / ARCHIVE))
    habits = [Habits(), Habits()]
    score = Score()
    for number, story in enumerate(stories):
        habits[number % 2].learn(story.hops, story.parent)
    for number, story in enumerate(stories):
        score.add(story, habits[1 - number % 2].guess(story.hops, [-1 if up < 0 else None for up in story.parent]))
    assert score.edges > 9_000
    assert score.share_right >= LOST_RIGHT_MIN
    assert score.misled <= PRINCIPAL_MAX * score.calls
    assert score.abstained < score.edges // 10, "it does not keep its word by saying nothing"
