"""What the commands about findings print, and how they ask: by a store of a few rows. Integration tests have the real one."""

import argparse
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pipeline.cli import exceptions, finding, findings, respond
from pipeline.cli.main import build_parser, main
from pipeline.core.respond import LIMITED, REVOKED, Response, rehearse
from pipeline.shells.controlclient import Change
from schemas.config import Respond
from schemas.errors import OperatorFault, PeerFault
from schemas.findings import finding_row, parse_finding
from schemas.home import Home
from tests.support.found import NOW_US
from tests.support.found import finding as found

CLOCK = datetime(2026, 9, 21, 12, tzinfo=UTC)
TIMES = ("window", "started", "ended", "time")


def row(*, state: str = "open", stored: datetime = CLOCK, **given: Any) -> dict[str, Any]:
    """A finding as a row of the view."""
    made = finding_row(found(**given), "work-1")
    del made["withdrawn"]
    for name in TIMES:
        made[name] = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=made[name])
    return {**made, "state": state, "stored": stored}


class Store:
    """An Asker that answers by what is asked for. What it is asked is kept."""

    def __init__(self, answer: Callable[[str], list[dict[str, Any]]]) -> None:
        self.answer = answer
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def rows(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        self.asked.append((sql, parameters))
        return self.answer(sql)


def args(*words: str) -> argparse.Namespace:
    return build_parser().parse_args(words)


# -- findings ------------------------------------------------------------------------------------------------------------


def test_words_of_the_user_are_parameters_and_what_is_false_is_left_out() -> None:
    store = Store(lambda sql: [])
    findings.Wanted(args("findings", "--agent", "x' OR 1", "--detector", "leak", "--since", "2026-01-31")).newest(store, 7)  # type: ignore[arg-type]
    ((sql, parameters),) = store.asked
    assert parameters == {"agent": "x' OR 1", "detector": "leak"}
    assert "WHERE state = 'open' AND agent = {agent:String} AND detector = {detector:String} AND time >= " in sql
    findings.Wanted(args("findings", "--all")).newest(store, 7)  # type: ignore[arg-type]
    assert "WHERE 1 AND 1 ORDER BY time DESC, id DESC LIMIT 7" in store.asked[1][0]


def test_a_line_tells_a_terminal_nothing() -> None:
    line = findings.line_of(row(title="evil \x1b[2J", state="false"))
    assert "evil \\x1b[2J (false)" in line
    assert line.endswith(found().id)


def test_json_has_terms_and_evidence_as_objects() -> None:
    said = json.loads(findings.line_as_json(row()))
    assert said["terms"] == [{"name": "bits", "value": 2310.0, "points": 95.0, "why": "new names"}]
    assert said["evidence"] == {"bits": 2310.0, "names": 5}
    assert said["time"].endswith("Z")


def test_follow_prints_a_finding_when_it_comes_and_when_it_gets_worse_and_waits_for_the_store(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    first, later = row(score=50.0), CLOCK + timedelta(seconds=9)
    steps: list[list[dict[str, Any]] | BaseException] = [
        [{"now": CLOCK}], [first], [first], PeerFault("the store is away"), [row(score=55.0, version=4, stored=later)],
        [row(score=95.0, version=5, stored=later)], [row(score=95.0, version=6, state="false")], KeyboardInterrupt(),
    ]  # fmt: skip

    def answer(_: str) -> list[dict[str, Any]]:
        step = steps.pop(0)
        if isinstance(step, BaseException):
            raise step
        return step

    store = Store(answer)
    given = args("findings", "--follow", "--all")
    assert findings.Follow(store, findings.Wanted(given), findings.line_of).run(given) == 0  # type: ignore[arg-type]
    out, err = capsys.readouterr()
    assert [line.split()[2:4] for line in out.splitlines()[1:]] == [["50", "medium"], ["95", "critical"], ["95", "critical"]]
    assert out.splitlines()[-1].count("(false)") == 1
    assert err == "wardline: the store is away; waiting for it\nwardline: the store answers again\n"
    after = [sql.partition("stored > toDateTime64(")[2].partition(",")[0] for sql, _ in store.asked if "stored >" in sql]
    assert float(after[-1]) - float(after[0]) == 9, "from what was stored last on"


# -- finding -------------------------------------------------------------------------------------------------------------

ANSWER = {
    "finding": found().id, "rule": "leaks", "selector": "agent:reader", "state": "revoked", "epoch": 17, "for_s": 600,
    "time": CLOCK, "why": "because", "tenant": "default", "worker": "work-1",
}  # fmt: skip


def case(sql: str) -> list[dict[str, Any]]:
    """A finding that was revoked, one door that obeyed, one that does not."""
    since = row()["time"] + timedelta(seconds=1)
    if "FROM findings" in sql:
        return [row()]
    if "FROM responses" in sql:
        return [ANSWER]
    if "FROM revocations" in sql:
        return [{"selector": "agent:reader", "state": "live", "since": since, "until": None}]
    if "FROM acks" in sql:
        assert "countIf(epoch < {epoch:UInt64}) > 0" in sql, "only doors that lived then"
        return [
            {"host": "enforce-1", "door": "d1", "applied": since + timedelta(milliseconds=40), "obeys": 1, "lives": 1},
            {"host": "enforce-2", "door": "d2", "applied": since, "obeys": 0, "lives": lives[0]},
        ]
    return []


lives = [0]


def test_a_finding_is_told_term_by_term_with_what_was_done_and_when_it_was_obeyed() -> None:
    lives[0] = 0
    told = finding.tell(Store(case), row())  # type: ignore[arg-type]
    page = finding.render(told, {"d1": "door-1"}, " --home x")
    for words in (
        "reader tells evil.example 2,310 bits in 5 names", f"leak finding {found().id}, score 95 (critical), open",
        "     +95.0  bits  2310          new names\n      95.0  in all", "bits   2310.0", "names  5",
        "calls: 5, 1 of them named\n  none of them is stored any more", "SELECT * FROM calls WHERE agent = 'reader'",
        "rule `leaks`: revoked `agent:reader` as epoch 17, for 10 min 0 s", "enforce-1 door-1 obeyed 40.0 ms later",
        "from the call that crossed the threshold to refusal at every door: 1.0 s",
        f"wardline finding {found().id} --false --owner YOU --for 30d --home x",
    ):  # fmt: skip
        assert words in page
    said = finding.as_json(told)
    assert said["responses"][0]["from_call_ms"] == 1040.0
    assert said["responses"][0]["acknowledged"][0]["ms"] == 40.0


def test_while_a_door_has_not_obeyed_nobody_says_how_long_it_took() -> None:
    lives[0] = 1
    told = finding.tell(Store(case), row())  # type: ignore[arg-type]
    page = finding.render(told, {}, "")
    assert "1 have NOT ACKNOWLEDGED it" in page
    assert "refusal at every door" not in page


def test_a_score_that_is_more_than_its_cap_says_so() -> None:
    page = finding.render({"finding": row(score=130.0), "calls": [], "responses": []}, {}, "")
    assert "130.0  in all, within 0 and 100" in page
    assert "nothing: no rule is about it" in page


@pytest.mark.parametrize(
    ("rows", "message"), [(0, "no stored finding has the id"), (5, "more than one finding begins with `abcdef01`: ")]
)
def test_an_id_must_name_one_finding(rows: int, message: str) -> None:
    with pytest.raises(OperatorFault, match=message):
        finding.find(Store(lambda sql: [row(agent=f"a{n}") for n in range(rows)][:4]), "abcdef01")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["abcdef0", "x" * 32, "a" * 33])
def test_what_is_no_id_is_refused_at_once(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["finding", text])
    assert left.value.code == 2
    assert "is no id: 8 to 32 hex digits" in capsys.readouterr().err


class Asked:
    """Control: what it is asked, and what it says of the past of a key."""

    def __init__(self, past: list[dict[str, Any]]) -> None:
        self.past = past
        self.made: list[tuple[str, dict[str, Any]]] = []

    def change(self, do: str, **fields: Any) -> Change:
        self.made.append((do, fields))
        return Change(epoch=40 + len(self.made), result={"exception": "e" * 32, "expires": 1_800_000_000})

    def audit(self, after: int, limit: int, key: str) -> list[dict[str, Any]]:
        assert key == "revocation/agent:reader"
        return [one for one in self.past if one["epoch"] > after][:limit]


OURS = {"epoch": 17, "value": {"kind": "agent", "name": "reader", "cascade": False}}


@pytest.mark.parametrize(
    ("past", "lifted"),
    [
        ([OURS], True), ([OURS, {"epoch": 20, "value": OURS["value"]}], False), ([OURS, {"epoch": 20, "value": None}], False),
    ],
)  # fmt: skip
def test_a_false_alarm_is_an_exception_and_lifts_what_still_stands_as_it_was_made(
    past: list[dict[str, Any]], lifted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    control = Asked(past)
    given = args("finding", found().id, "--false", "--owner", "ops", "--for", "30d", "--reason", "ours")
    assert finding.call_false(given, Home("/h"), control, row(), [ANSWER]) == 0  # type: ignore[arg-type]
    assert control.made[0] == ("exception-add", {
        "finding": found().id, "detector": "leak", "subject": found().subject, "owner": "ops", "reason": "ours",
        "for_s": 30 * 86_400,
    })  # fmt: skip
    assert [do for do, _ in control.made[1:]] == ["unrevoke"] * lifted
    assert ("no longer revoked: agent:reader" in capsys.readouterr().out) is lifted


@pytest.mark.parametrize(
    ("words", "detector", "message"),
    [
        (["--false", "--for", "1d"], "leak", "--false needs --owner"),
        (["--false", "--owner", "o"], "leak", "--false needs --for"),
        (["--false", "--owner", "o", "--for", "1d"], "limit", "that a rule has reached its limit is no alarm of a detector"),
    ],
)  # fmt: skip
def test_an_exception_needs_an_owner_an_end_and_an_alarm(words: list[str], detector: str, message: str) -> None:
    control = Asked([])
    with pytest.raises(OperatorFault, match=message):
        finding.call_false(args("finding", "a" * 32, *words), Home("/h"), control, row(detector=detector), [])  # type: ignore[arg-type]
    assert control.made == []


# -- exceptions and respond ----------------------------------------------------------------------------------------------


def test_an_exception_is_removed_by_its_own_id_or_by_that_of_its_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"finding": "f" * 32, "detector": "leak", "subject": "s", "owner": "o", "reason": "", "expires": 2_000_000_000}
    entries = [
        {"key": f"exception/{name * 32}", "epoch": 3, "time_ns": 0, "actor": "uid:x", "value": value | {"finding": made * 32}}
        for name, made in (("a", "f"), ("b", "c"))
    ]
    control = Asked([])
    control.live = lambda kind: entries  # type: ignore[attr-defined]
    monkeypatch.setattr(exceptions, "_control", lambda _: control)
    assert exceptions.run_remove(args("exceptions", "remove", "ffffffff")) == 0
    assert exceptions.run_remove(args("exceptions", "remove", "bbbbbbbb")) == 0
    assert [fields for _, fields in control.made] == [{"name": "a" * 32}, {"name": "b" * 32}]
    with pytest.raises(OperatorFault, match="no exception has the id `dddddddd`"):
        exceptions.run_remove(args("exceptions", "remove", "dddddddd"))


RULES = (Respond(name="leaks", finding="leak", revoke="agent", limit=2), Respond(name="never", finding="risk", revoke="agent"))


def test_a_rehearsal_is_what_the_rules_would_have_done_in_the_order_of_the_calls() -> None:
    hour = 3_600_000_000
    many = [found(f"a{n}", at_us=NOW_US + n * 1_000_000) for n in range(4)]
    same = found("a0", subject="agent=a0 domain=other.example", at_us=NOW_US + 500_000)
    late = found("b", at_us=NOW_US + 2 * hour)
    said = rehearse(RULES, [late, same, *reversed(many)], exceptions={("leak", many[3].subject)})
    assert [(one.agent, answer.state) for one, answer in said] == [
        ("a0", "revoked"), ("a0", "standing"), ("a1", "revoked"), ("a2", "limited"), ("a3", "excepted"), ("b", "revoked"),
    ]  # fmt: skip
    assert rehearse(RULES, [found(at_us=1_000)])[0][1].state == REVOKED, "calls of the past are what it is about"


def test_the_summary_names_each_rule_its_limit_and_what_came_of_it() -> None:
    said = rehearse(RULES, [found(f"a{n}") for n in range(5)])
    lines = respond.summary(RULES, [one for one, _ in said], said)
    assert lines == [
        "5 findings; nothing was revoked now, this is what each rule would have done:",
        "  rule `leaks`: 2 revocations of 2 agents, 1 h 0 min each, 3 stopped by its limit of 2 in 1 h 0 min",
        "  rule `never`: 0 revocations of 0 agents, 1 h 0 min each",
    ]


def test_what_is_stored_is_read_back_as_it_was_and_what_is_said_of_limits_is_no_finding_to_try() -> None:
    rows = [row(), row(agent="x", state="false"), row(detector="limit", agent="")]
    store = Store(lambda sql: rows)
    many, false = respond.stored(store, "1")  # type: ignore[arg-type]
    assert many == [found(), found(agent="x")]
    assert false == {("leak", found(agent="x").subject)}
    assert parse_finding(rows[0]) == found()


def test_what_was_over_when_it_was_found_is_counted_and_not_listed(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [ANSWER, *({**ANSWER, "state": "late", "selector": "", "epoch": 0, "why": "over"} for _ in range(3))]
    respond.show(args("respond"), RULES, rows)
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[2:5] for line in out[1:-1]] == [["leaks", "revoked", "agent:reader"]]
    assert out[-1] == "3 findings were over when they were found (late)"
    respond.show(args("respond", "--json"), RULES, rows)
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_without_rules_there_is_nothing_to_try(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["respond", "--dry-run", "--home", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"wardline: {tmp_path}/wardline.toml: has no [[respond]]: findings only alert\n"


def test_a_response_that_is_shown_says_why_where_nothing_was_revoked() -> None:
    limited = Response(finding="f" * 32, rule="r", selector="agent:x", state=LIMITED, time_us=NOW_US, why="too often")
    cells = respond._cells(found(), limited)
    assert (cells[2], cells[4], cells[6]) == ("LIMITED", "-", "too often")
