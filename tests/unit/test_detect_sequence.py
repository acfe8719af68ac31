"""The detector of tools in an order that an agent never had."""

import random

from pipeline.core.detect.sequence import Sequences
from schemas.findings import Finding
from tests.support.noticing import DAY_S, Row, orders, row, standing, stored, table, words


def task(name: str, tools: str, since: float, agent: str = "a") -> list[Row]:
    """One call a second, of tools named by a letter each."""
    return [row(since + n, agent, task=name, resource=f'Tool::"s/{tool}"') for n, tool in enumerate(tools)]


LEARNT = task("one", "abcd", 0) + task("two", "abd", 100)


def test_a_tool_that_an_agent_never_called_is_found() -> None:
    (finding,) = standing(words(Sequences(), LEARNT, task("bad", "abx", DAY_S))).values()
    assert (finding.agent, finding.session, finding.subject) == ("a", "bad", "agent=a task=bad")
    assert finding.evidence["tools"] == ['Tool::"s/x"']
    assert finding.score == 15.0
    assert len(finding.calls) == finding.calls_count == 3
    assert finding.time_us == finding.ended_us


def test_known_tools_in_a_new_order_are_found() -> None:
    (finding,) = standing(words(Sequences(), LEARNT, task("bad", "dcb", DAY_S))).values()
    assert finding.evidence["new_tools"] == 0
    assert finding.evidence["pairs"] == [[f'Tool::"s/{a}"', f'Tool::"s/{b}"'] for a, b in ("cb", "db", "dc")]
    assert finding.score == 15.0


def test_one_new_pair_alone_is_not_worth_a_word() -> None:
    assert not words(Sequences(), LEARNT, task("odd", "ba", DAY_S))


def test_a_harmless_call_in_between_hides_nothing() -> None:
    for tools in ("dcb", "daacaab", "aadacaaba"):
        (finding,) = standing(words(Sequences(), LEARNT, task("bad", tools, DAY_S))).values()
        found = {"".join(tool[-2] for tool in pair) for pair in finding.evidence["pairs"]}
        assert {"dc", "cb", "db"} <= found


def test_what_an_agent_does_in_its_first_day_is_what_it_does() -> None:
    assert not words(Sequences(), LEARNT, task("early", "dcbaxyz", DAY_S - 1))
    assert not words(Sequences(), LEARNT, task("early", "dcbaxyz", DAY_S - 1), task("again", "dcbaxyz", 2 * DAY_S))


def test_what_was_done_once_is_known() -> None:
    said = words(Sequences(), LEARNT, task("bad", "abx", DAY_S), task("again", "abx", DAY_S + 60))
    assert [finding.session for finding in said] == ["bad"]


def test_an_older_task_that_comes_late_takes_the_finding_over() -> None:
    """It was the first to do so, in its day of learning or not."""
    said = words(Sequences(), LEARNT, task("bad", "abx", 3 * DAY_S), task("worse", "abx", 2 * DAY_S))
    assert [(finding.session, finding.withdrawn) for finding in said] == [("bad", False), ("bad", True), ("worse", False)]
    said = words(Sequences(), LEARNT, task("bad", "abx", 3 * DAY_S), task("early", "x", 50))
    assert not standing(said)


def test_one_agent_s_habits_are_not_another_s() -> None:
    said = words(Sequences(), LEARNT, task("o", "z", 0, "b"), task("other", "abcd", DAY_S, "b"))
    assert [finding.agent for finding in said] == ["b"]


def test_hosts_and_ends_of_calls_are_not_looked_at() -> None:
    detector = Sequences()
    page = [one | {"resource": f'Host::"{n}.example:443"'} for n, one in enumerate(task("page", "abcdefgh", DAY_S))]
    ends = [one | {"calls": 0, "task": ""} for one in task("bad", "xyz", DAY_S)]
    assert not words(detector, LEARNT, page, ends)
    assert detector.entries == 2


def test_a_trace_is_a_task_and_no_session() -> None:
    (finding,) = words(Sequences(), LEARNT, task("0123456789abcdef" * 2, "abx", DAY_S))
    assert (finding.session, finding.evidence["task"]) == ("", "0123456789abcdef" * 2)


def test_its_score_follows_from_its_evidence() -> None:
    for tools in ("abx", "dcba", "xyzw", "dcbaxq", "dcba" + "efgh"):
        (finding,) = standing(words(Sequences(), LEARNT, task("bad", tools, DAY_S))).values()
        seen = stored(finding).evidence
        assert len(seen["tools"]) == seen["new_tools"]
        assert len(seen["pairs"]) == seen["new_pairs"]
        assert not {t for pair in seen["pairs"] for t in pair} & set(seen["tools"])
        assert finding.score == min(45, 15 * len(seen["tools"])) + min(25, 5 * len(seen["pairs"]))
        assert finding.started_us - seen["agent_first_us"] >= DAY_S * 10**6


def settled(said: list[Finding]) -> list[tuple[object, ...]]:
    last = standing(said).values()
    return sorted((f.id, f.terms, str(f.evidence), f.calls, f.started_us, f.ended_us, f.time_us, f.calls_count) for f in last)


def test_the_same_calls_in_any_order_are_the_same_findings() -> None:
    dice = random.Random(5)
    calls = []
    for number in range(60):
        letters = "".join(dice.choices("abcdef" if number < 40 else "abcdefgh", k=dice.randint(2, 7)))
        calls += task(f"t{number}", letters, number * 4000, agent="ab"[number % 2])
    expected = settled(words(Sequences(), calls))
    assert len(expected) >= 3
    for takes in orders(calls, range(20)):
        assert settled(words(Sequences(), *takes)) == expected


def test_a_million_tasks_take_no_more_memory_than_a_few() -> None:
    detector = Sequences(tasks=50, tools=4, pairs=100)
    for start in range(0, 3000, 100):
        rows = [row(n, f"a{n // 7}", task=f"t{n // 3}", resource=f'Tool::"s/{n}"') for n in range(start, start + 100)]
        detector.take(table(rows))
        assert detector.entries <= 50
        assert detector._things <= 100
        assert detector._things == sum(len(agent.owners) for agent in detector._agents.values())
        assert detector.entries == sum(len(agent.tasks) for agent in detector._agents.values())
    assert detector.evicted > 900
    detector.clear()
    assert detector.entries == detector._things == 0


def test_of_one_task_some_tools_are_enough_and_the_rest_is_counted() -> None:
    detector = Sequences()
    detector.take(table(one for n in range(40) for one in task("t", chr(97 + n), n)))
    assert detector.evicted == 8


def test_one_agent_with_too_many_tools_costs_the_others_what_they_know_and_then_itself() -> None:
    detector = Sequences(pairs=30)
    words(detector, LEARNT, [one for n in range(9) for one in task(f"t{n}", "abcdefgh"[: n + 1], n, "b")])
    assert set(detector._agents) == {"b"}
    assert detector._things == 30
    assert detector.evicted > 2


def test_agents_of_one_frame_make_room_for_each_other() -> None:
    detector = Sequences(pairs=20)
    detector.take(table(one for n in range(9) for one in task(f"t{n}", "abcd", n, f"agent {n}")))
    assert detector._things == sum(len(agent.owners) for agent in detector._agents.values()) <= 20
    assert detector.entries == sum(len(agent.tasks) for agent in detector._agents.values()) == 2
    assert detector.evicted == 7
