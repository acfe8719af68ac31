"""What rules make of findings: whom they revoke, how often, and what they never do."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.requests import REASON_BYTES_MAX
from pipeline.core.respond import (
    EXCEPTED,
    FAILED,
    LATE,
    LATE_S,
    LIMITED,
    REVOKED,
    STANDING,
    Book,
    Known,
    Response,
    Revoke,
    Standing,
    about,
    decide,
    limit_finding,
    selector_of,
)
from schemas.config import Respond
from schemas.detectors import BEACON, CHAIN, DENY_BURST, DETECTORS, LEAK, LIMIT, RISK, SECOND_HOLDER, SEQUENCE
from schemas.errors import OperatorFault
from schemas.findings import Finding, Term
from schemas.selectors import Selector
from tests.support.found import NOW_US, finding

TOKEN = "ab" * 32
SECRET = "cd" * 16
S = 1_000_000


def rule(**given: Any) -> Respond:
    return Respond(**({"name": "r", "finding": LEAK, "revoke": "agent"} | given))


def ask(
    found: Finding, by: Respond | None = None, book: Book | None = None, known: Known | None = None, *, now_us: int = NOW_US
) -> Revoke | Response | None:
    return decide(found, by or rule(), book or Book(), known or Known(), now_us=now_us)


def asked(said: Revoke | Response | None) -> Revoke:
    assert isinstance(said, Revoke), said
    return said


def word(said: Revoke | Response | None) -> Response:
    assert isinstance(said, Response), said
    return said


def test_a_rule_revokes_what_the_finding_names_and_says_why() -> None:
    found = finding()
    said = asked(ask(found))
    assert said.selector == Selector(kind="agent", name="reader")
    assert said.reason == (
        f"finding {found.id}, rule `r`, leak, score 95: reader tells evil.example 2,310 bits in 5 names [bits 2310]"
    )
    made = said.made(17, NOW_US + 5)
    assert (made.finding, made.rule, made.selector, made.state, made.epoch, made.for_s) == (
        found.id, "r", "agent:reader", REVOKED, 17, 3600
    )  # fmt: skip


@pytest.mark.parametrize(
    ("by", "found", "selector"),
    [
        (rule(cascade=True), finding(), "agent*:reader"),
        (rule(revoke="destination"), finding(), "destination:evil.example"),
        (rule(revoke="destination"), finding(domain="", host="203.0.113.9"), "destination:203.0.113.9"),
        (rule(finding=SEQUENCE, revoke="session"), finding(detector=SEQUENCE, session="s-1"), "session:s-1"),
        (rule(finding=SECOND_HOLDER, revoke="credential"), finding(detector=SECOND_HOLDER, credential=TOKEN), f"token:{TOKEN}"),
        (rule(finding=SECOND_HOLDER, revoke="credential"), finding(detector=SECOND_HOLDER, credential=SECRET), "agent:reader"),
    ],
)
def test_each_kind_of_selector_is_filled_from_the_finding(by: Respond, found: Finding, selector: str) -> None:
    assert asked(ask(found, by)).selector.text == selector


def test_the_root_is_revoked_where_all_calls_have_one() -> None:
    by, found = rule(revoke="root", cascade=True), finding()
    assert selector_of(found, by, ['User::"alice"']).text == 'principal*:User::"alice"'
    with pytest.raises(OperatorFault, match="2 roots"):
        selector_of(found, by, ['User::"alice"', 'User::"bob"'])
    assert word(ask(found, by)).why == "it names no root"
    assert asked(ask(found, by, known=Known(roots={found.id: ['User::"alice"']}))).selector.kind == "principal"


def test_what_a_finding_does_not_name_is_not_revoked_and_said_once() -> None:
    found, book = finding(detector=SEQUENCE), Book()
    by = rule(finding=SEQUENCE, revoke="session")
    said = word(ask(found, by, book))
    assert (said.state, said.why) == (FAILED, "it names no session")
    book.add(said)
    assert ask(found, by, book) is None


def test_a_beacon_alone_never_revokes() -> None:
    """Neither by a rule about any detector, nor as a risk that nothing else is part of."""
    every = rule(finding="any")
    assert not about(every, finding(detector=BEACON))
    parts = (Term(name="beacon", value=90.0, points=50.0), Term(name="beacon more", value=90.0, points=50.0))
    assert not about(every, finding(detector=RISK, terms=parts))
    assert about(every, finding(detector=RISK, terms=(*parts, Term(name="leak", value=90.0, points=10.0))))


def test_a_rule_about_any_detector_is_about_each_that_may_revoke() -> None:
    every = rule(finding="any")
    assert {name for name in (*DETECTORS, LIMIT) if about(every, finding(detector=name))} == {*DETECTORS} - {BEACON}
    named = rule(finding="any", revoke="session")
    assert {name for name in (*DETECTORS, LIMIT) if about(named, finding(detector=name))} == {SEQUENCE, CHAIN}


@pytest.mark.parametrize("least", [95, 96])
def test_a_rule_begins_at_its_least_score(least: int) -> None:
    assert about(rule(min_score=least), finding(score=95.0)) == (least == 95)


def test_what_is_withdrawn_revokes_nothing() -> None:
    assert not about(rule(), finding(withdrawn=True))


def test_a_finding_is_answered_once_however_it_grows() -> None:
    book = Book()
    book.add(asked(ask(finding(), book=book)).made(17, NOW_US))
    assert ask(finding(version=900, ended_us=NOW_US + 3600 * S), book=book, now_us=NOW_US + 3600 * S) is None


def test_calls_behind_the_end_of_what_was_revoked_revoke_again_as_another_change() -> None:
    book = Book()
    first = asked(ask(finding(), book=book))
    book.add(first.made(17, NOW_US))
    later = NOW_US + 3700 * S
    again = asked(ask(finding(ended_us=later), book=book, now_us=later))
    assert (again.selector, again.id != first.id) == (first.selector, True)
    book.add(again.made(40, later))
    third = asked(ask(finding(ended_us=2 * later - NOW_US), book=book, now_us=2 * later - NOW_US))
    assert len({first.id, again.id, third.id}) == 3


def test_a_change_that_was_limited_meanwhile_is_still_another_one() -> None:
    was: dict[str, Any] = {"finding": finding().id, "rule": "r", "selector": "agent:reader"}
    book = Book([Response(**was, state=REVOKED, time_us=NOW_US, epoch=17, for_s=1)])
    later = NOW_US + 50 * S
    book.add(Response(**was, state=LIMITED, time_us=later))
    first = asked(ask(finding()))
    assert asked(ask(finding(ended_us=later), book=book, now_us=later + S)).id != first.id


def test_the_same_question_has_the_same_id_whatever_else_the_finding_says() -> None:
    """A crash behind control's answer: the second try, of a newer version, is the change that was made."""
    ids = {asked(ask(finding(version=n, score=90.0 + n, title=f"t{n}"), now_us=NOW_US + n)).id for n in range(5)}
    assert len(ids) == 1
    assert asked(ask(finding("writer"))).id not in ids
    assert asked(ask(finding(), rule(name="other"))).id not in ids
    assert asked(ask(finding(), rule(cascade=True))).id not in ids


def test_what_somebody_has_called_false_is_not_answered_and_said_once() -> None:
    book, known = Book(), Known(exceptions={(LEAK, finding().subject)})
    said = word(ask(finding(), book=book, known=known))
    assert said.state == EXCEPTED
    book.add(said)
    assert ask(finding(version=9), book=book, known=known) is None
    assert asked(ask(finding(version=9), book=book)), "the exception has ended"
    assert asked(ask(finding("writer"), known=known))


@pytest.mark.parametrize("for_s", [60, 7200])
def test_calls_of_the_past_that_come_in_today_revoke_nobody_today(for_s: int) -> None:
    by, oldest = rule(for_s=for_s), NOW_US - max(for_s, LATE_S) * S
    assert asked(ask(finding(at_us=oldest), by))
    assert word(ask(finding(at_us=oldest - 1), by)).state == LATE


def test_what_is_revoked_already_stays_as_it_is_until_it_ends() -> None:
    """Nobody's revocation is shortened by a rule, nor prolonged by calls that it refuses."""
    held = {"agent:reader": Standing(5, NOW_US // S + 600)}
    book, known = Book(), Known(standing=held.get)
    said = word(ask(finding(), book=book, known=known))
    assert (said.state, said.epoch, said.for_s) == (STANDING, 5, 600)
    book.add(said)
    burst = rule(finding=DENY_BURST)
    assert word(ask(finding(detector=DENY_BURST), burst, known=known)).state == STANDING
    later = NOW_US + 601 * S
    assert asked(ask(finding(ended_us=later), book=book, known=known, now_us=later))
    assert ask(finding(version=99), book=book, known=known) is None


def test_a_revocation_of_this_rule_for_this_finding_is_its_own_answer_that_got_lost() -> None:
    reason = asked(ask(finding())).reason
    said = word(ask(finding(version=9), known=Known(standing={"agent:reader": Standing(5, 0, reason)}.get)))
    assert (said.state, said.epoch) == (REVOKED, 5)
    others = (finding(subject="agent=reader domain=other.example"), rule()), (finding(), rule(name="r2"))
    for found, by in others:
        assert word(ask(found, by, known=Known(standing={"agent:reader": Standing(5, 0, reason)}.get))).state == STANDING


def test_a_revocation_of_the_agent_in_every_position_covers_its_own_calls() -> None:
    known = Known(standing={"agent*:reader": Standing(5, 0)}.get)
    said = word(ask(finding(), known=known))
    assert (said.state, said.epoch, said.for_s) == (STANDING, 5, 0)
    assert not said.over(1 << 62)
    assert asked(ask(finding(), rule(cascade=True), known=Known(standing={"agent:reader": Standing(5, 0)}.get)))


def test_control_characters_and_lengths_of_a_title_do_not_get_into_the_log() -> None:
    said = asked(ask(finding(title="a\x1b[2J\u202e" + "é" * 2000)))
    assert said.reason.isprintable()
    assert len(said.reason.encode()) <= REASON_BYTES_MAX


def test_names_that_control_would_refuse_are_a_word_and_no_fault() -> None:
    said = word(ask(finding(agent="x" * 300, subject="s")))
    assert (said.state, "limit is 256" in said.why) == (FAILED, True)


# -- the limit -----------------------------------------------------------------------------------------------------------


def play(by: Respond, story: Sequence[tuple[int, str]], *, start: int = NOW_US) -> list[Response]:
    """Findings of agents, each so many seconds behind the one before, answered as the responder does."""
    book, now_us, made = Book(), start, []
    for epoch, (wait_s, agent) in enumerate(story, 1):
        now_us += wait_s * S
        said = ask(finding(agent, at_us=now_us), by, book, now_us=now_us)
        response = said.made(epoch, now_us) if isinstance(said, Revoke) else said
        if response is not None:
            book.add(response)
            made.append(response)
    return made


@given(
    limit=st.integers(1, 5), limit_s=st.integers(1, 40), for_s=st.integers(1, 60),
    story=st.lists(st.tuples(st.integers(0, 10), st.sampled_from("abcdefgh")), max_size=60),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_no_rule_revokes_more_often_than_it_may(limit: int, limit_s: int, for_s: int, story: list[tuple[int, str]]) -> None:
    made = play(rule(limit=limit, limit_s=limit_s, for_s=for_s), story)
    times = [one.time_us for one in made if one.state == REVOKED]
    for at in times:
        assert sum(at - limit_s * S < other <= at for other in times) <= limit
    if story:
        assert times, "the first is always possible"


def test_the_generator_of_the_limit_reaches_both_sides() -> None:
    states = {one.state for one in play(rule(limit=2, limit_s=10), [(1, name) for name in "abcdef" * 3])}
    assert states == {REVOKED, LIMITED}


def test_a_fleet_is_not_revoked_at_once_and_what_is_stopped_is_said_of_each() -> None:
    made = play(rule(), [(1, f"agent-{number}") for number in range(100)])
    assert [one.state for one in made] == 5 * [REVOKED] + 95 * [LIMITED]
    assert made[5].why == "rule `r` has revoked 5 times in 3600 s, limit is 5; the next is possible in 3595 s"
    assert [one.selector for one in made[5:7]] == ["agent:agent-5", "agent:agent-6"]


def test_who_was_stopped_by_the_limit_is_revoked_when_there_is_room_and_it_goes_on() -> None:
    made = play(rule(limit=1, limit_s=10, for_s=100), [(0, "a"), (1, "b"), (1, "b"), (9, "b")])
    assert [(one.selector, one.state) for one in made] == [
        ("agent:a", REVOKED), ("agent:b", LIMITED), ("agent:b", REVOKED)
    ]  # fmt: skip


def test_that_a_limit_is_reached_is_one_finding_however_often_and_by_whom_it_is_said() -> None:
    by, book = rule(limit=2), Book()
    for epoch, agent in enumerate("ab", 1):
        book.add(asked(ask(finding(agent), by, book)).made(epoch, NOW_US + epoch))
    said = [limit_finding(by, finding(agent), book, now_us=NOW_US + 9 + n) for n, agent in enumerate("cd")]
    assert said[0].id == said[1].id
    assert (said[0].detector, said[0].score, said[0].subject) == (LIMIT, 90.0, "rule=r")
    assert said[0].title == "rule `r` has revoked 2 times in 3600 s, limit is 2: what is found now is not revoked"
    assert not about(rule(finding="any", min_score=1), said[0]), "it revokes nobody"


def test_that_a_limit_is_reached_is_known_for_as_long_as_the_limit_is_about() -> None:
    by, book = rule(limit_s=10), Book()
    assert not book.was_limited(by, NOW_US)
    book.add(Response(finding="f", rule="r", selector="", state=LIMITED, time_us=NOW_US))
    assert book.was_limited(by, NOW_US + 9 * S)
    assert not book.was_limited(by, NOW_US + 10 * S)


@given(st.permutations([("f", state, n) for n, state in enumerate((REVOKED, LIMITED, STANDING, REVOKED))]))
def test_a_book_does_not_depend_on_the_order_in_which_it_is_read(rows: list[tuple[str, str, int]]) -> None:
    book = Book(
        Response(finding=name, rule="r", selector="s", state=state, time_us=NOW_US + n, epoch=n if state == REVOKED else 0)
        for name, state, n in rows
    )
    last = book.last("f", "r")
    assert last is not None
    assert (last.time_us, book.epoch("f", "r"), book.revoked(rule(), NOW_US + 5)) == (NOW_US + 3, 3, [NOW_US, NOW_US + 3])
