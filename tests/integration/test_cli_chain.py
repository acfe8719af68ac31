"""`wardline chain` on records that were planted: what an id finds, and how a trace is drawn for people and for programs."""

import html.parser
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import chain
from pipeline.cli.main import main
from schemas.records import Kind
from tests.support.stitching import (
    ALICE,
    BOB,
    FIRST_DOOR,
    PLANNER,
    RESEARCHER,
    SCRAPER,
    SECOND_DOOR,
    Kept,
    Made,
    call,
    feed,
    records_of,
    small,
    span_of,
)
from tests.support.store import NOW_S, ZEROS, Store, frame_of

FIRST = call(1, 5, [ALICE, PLANNER], at=0, until=900, session="s-1", resource='Host::"api.example.org:443"')
SECOND = call(1, 7, [ALICE, PLANNER, RESEARCHER], boot=SECOND_DOOR, at=100, until=800, parent=FIRST.span, session="s-1")
THIRD = call(1, 8, [ALICE, PLANNER, RESEARCHER], boot=SECOND_DOOR, at=200, parent=SECOND.span, allowed=False, session="s-2")
WHOLE = (FIRST, SECOND, THIRD)
TRACE = f"{1:032x}"

HOSTILE = 'x"><script>alert(1)</script>\x1b[31m\u202egpj.exe\\l"]; evil [label="&amp;'


def plant(store: Store, calls: Sequence[Made], *, ingested_s: int = NOW_S, frame_no: int = 1) -> None:
    """The records of some calls, by two enforcers."""
    for number, name in enumerate(("enforce-1", "enforce-2")):
        mine = [ZEROS | row for who, row in records_of(calls) if who == name]
        if mine:
            store.insert(frame_of(mine, frame_no=frame_no, enforcer=name, boot=70 + number, ingested_s=ingested_s))


Draw = Callable[..., str]


@pytest.fixture
def draw(store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Draw:
    """What the command prints, with its exit code held to `code`."""
    monkeypatch.delenv("WARDLINE_PARENT", raising=False)

    def run(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        mask = os.umask(0o077)
        try:
            assert main(["chain", "--home", str(store.home.root), *words]) == code
        finally:
            os.umask(mask)
        said = capsys.readouterr()
        return said.err if code else said.out

    return run


def test_a_trace_is_drawn_by_the_id_of_a_call_its_beginning_the_trace_or_the_session(store: Store, draw: Draw) -> None:
    plant(store, WHOLE)
    found = {draw(name) for name in (THIRD.id, SECOND.id.upper(), FIRST.id[:10], TRACE, "s-2")}
    (text,) = found
    assert text.splitlines()[:6] == [
        f"trace      {TRACE}", "grade      complete: nothing is missing", f"for        {ALICE}",
        "agents     planner, researcher", "enforcers  enforce-1, enforce-2",
        "calls      3, 1 refused, 2026-09-21 14:13:20.000 UTC, 900.0 ms",
    ]  # fmt: skip
    said = text.splitlines()[7:]
    assert said[0].startswith("planner  ")
    assert "api.example.org:443: allow, ok, 10 B out, 0 B in, 0.0 ms" in said[0]
    assert said[1].startswith("|  2026-")
    assert said[1].endswith(f"of enforce-1, call {FIRST.id}")
    assert said[2] == f"|  for {ALICE} -> {PLANNER}"
    assert said[3].startswith("`- (signed) researcher  ")
    assert said[5] == f"   |  for {ALICE} -> {PLANNER} -> {RESEARCHER}"
    assert said[6].startswith("   `- (observed) researcher  ")
    assert ": deny permit, refused" in said[6]
    assert len(said) == 8, "whose chain is the same is not said again"


def test_an_id_that_nothing_has_is_the_users_mistake(store: Store, draw: Draw) -> None:
    plant(store, WHOLE)
    for name in ("ffffffff", "f" * 32, "nobody's", "s-1 "):
        what = "is no call, trace or session that is in the store (yet: `wardline status`)"
        assert draw(name, code=2) == f"wardline: `{name}` {what}\n"
    twice = call(2, 6, [ALICE, PLANNER])
    plant(store, [twice], frame_no=2)
    assert f"is the beginning of several calls, give more of it: {FIRST.id}, {twice.id}" in draw(FIRST.id[:16], code=2)


def test_json_has_every_column_of_the_calls_and_what_was_found_of_each(store: Store, draw: Draw) -> None:
    plant(store, WHOLE)
    said = json.loads(draw("--json", THIRD.id))
    assert (said["asked"], said["kind"], said["more_traces"]) == (THIRD.id, "call", 0)
    (trace,) = said["traces"]
    assert (trace["grade"], trace["calls"], trace["denied"], trace["depth"], trace["stored"]) == ("complete", 3, 1, 3, None)
    columns = {name for (name, *_) in store.rows("DESCRIBE TABLE calls")}
    for one, made, parent in zip(trace["calls_drawn"], WHOLE, ("", FIRST.id, SECOND.id), strict=True):
        assert columns <= one.keys()
        assert (one["call_id"], one["parent"]) == (made.id, parent)
    assert [one["edge_assurance"] for one in trace["calls_drawn"]] == ["", "signed", "observed"]


@pytest.mark.parametrize("whole", [False, True], ids=["two records a call", "whole"])
def test_what_it_says_is_what_the_worker_says(store: Store, draw: Draw, whole: bool) -> None:
    """Traces of every grade: the command's words are those of a stitcher that took the same records."""
    traces: list[tuple[Made, ...]] = [
        WHOLE,
        (call(2, 20, [ALICE, PLANNER], parent=span_of(SECOND_DOOR, 99)),),
        (call(3, 30, [ALICE, PLANNER], at=0), call(3, 31, [BOB, SCRAPER], at=5)),
        (call(4, 40, [ALICE, PLANNER], at=0, until=9), call(4, 41, [ALICE, SCRAPER], at=5, parent=span_of(FIRST_DOOR, 40))),
        (call(5, 50, [ALICE, PLANNER], at=0, until=90), call(5, 51, [SCRAPER], at=5, until=50, boot=SECOND_DOOR)),
        (call(6, 60, [ALICE, PLANNER], at=0, allowed=False), call(6, 61, [SCRAPER], at=5, parent=span_of(FIRST_DOOR, 60))),
    ]
    stitcher, kept = small(), Kept()
    if whole:
        traces = [tuple(one.whole for one in calls) for calls in traces]
    for frame_no, calls in enumerate(traces, 1):
        plant(store, calls, frame_no=frame_no)
        feed(stitcher, kept, records_of(calls))
    kept.keep(stitcher.settle(1 << 62))
    grades = []
    for number, calls in enumerate(traces, 1):
        (said,) = json.loads(draw("--json", calls[-1].id))["traces"]
        row = kept.traces[number.to_bytes(16, "big")]
        grades.append(said["grade"])
        for name in ("grade", "why", "root", "agents", "enforcers", "calls", "denied", "depth"):
            assert said[name] == row[name], (number, name)
        assert [said["started_us"], said["ended_us"]] == [round(row[n].timestamp() * 1e6) for n in ("started", "ended")]
        for one, made in zip(said["calls_drawn"], calls, strict=True):
            drawn = one["parent"], one["edge_assurance"], tuple(one["effective_chain"]), one["grade"]
            assert drawn == kept.edge(made), made
    assert grades == ["complete", "gap", "forged", "widened", "complete", "forged"]


def test_a_trace_of_which_something_came_just_now_is_provisional(store: Store, draw: Draw) -> None:
    plant(store, [FIRST], ingested_s=int(time.time()))
    assert "grade      provisional: more of it may be on its way" in draw(FIRST.id)


def test_the_traces_of_a_session_are_drawn_from_the_oldest_and_the_rest_is_counted(
    store: Store, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "TRACES_MAX", 2)
    plant(store, [call(number, number, [ALICE, PLANNER], at=number, session="long") for number in range(1, 6)])
    text = draw("long")
    assert re.findall(r"^trace +(\w+)", text, re.MULTILINE) == [f"{number:032x}" for number in (4, 5)]
    assert "3 older traces of this session are not shown" in text


class Page(html.parser.HTMLParser):
    """What a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_one_file_that_loads_nothing(store: Store, draw: Draw, tmp_path: Path) -> None:
    plant(store, WHOLE)
    file = tmp_path / "chain.html"
    assert draw("--html", str(file), THIRD.id) == f"{file}: 3 calls of 1 traces\n"
    text = file.read_text()
    page = Page(text)
    assert not page.open
    assert {"script", "link", "img", "iframe", "object", "base", "form"}.isdisjoint(page.tags)
    names = {name for name, _ in page.attributes}
    assert names == {"lang", "charset", "http-equiv", "content", "name", "class"}, "nothing that could name another place"
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    assert not [word for word in ("url(", "@import", "://") if word in text]
    assert [word in text for word in ("@media print", "prefers-color-scheme: dark")] == [True, True]
    for made in WHOLE:
        assert made.id in page.text


def test_hostile_texts_are_shown_and_do_nothing(store: Store, draw: Draw, tmp_path: Path) -> None:
    made = call(9, 5, [ALICE, PLANNER], session=HOSTILE, path=HOSTILE, door=HOSTILE, reason=HOSTILE, allowed=False)
    made.records[0]["agent"] = HOSTILE
    plant(store, [made])
    file = tmp_path / "chain.html"
    draw("--html", str(file), HOSTILE)
    page = Page(file.read_text())
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.text, "as text"
    for output in (draw(made.id), draw("--dot", made.id), draw("--json", made.id), file.read_text()):
        assert "\x1b" not in output
        assert "\u202e" not in output
    dot = draw("--dot", made.id)
    if shutil.which("dot"):
        done = subprocess.run(["dot", "-Tplain"], input=dot, capture_output=True, text=True, check=True)
        assert done.stdout.count("\nnode ") == 1
    strings = re.sub(r'"(?:[^"\\]|\\.)*"', "S", dot)
    assert "evil" not in strings, "inside of a string, and nowhere else"
    assert strings.count("label=S") == 2


def test_the_graph_has_a_node_for_each_call_and_an_edge_for_each_cause(store: Store, draw: Draw) -> None:
    plant(store, WHOLE)
    dot = draw("--dot", THIRD.id)
    assert re.findall(r'^ +"(\w+)" \[label=', dot, re.MULTILINE) == [made.id for made in WHOLE]
    assert re.findall(r'"(\w+)" -> "(\w+)" \[label="(\w+)"', dot) == [
        (FIRST.id, SECOND.id, "signed"), (SECOND.id, THIRD.id, "observed"),
    ]  # fmt: skip


def test_the_worker_that_has_said_otherwise_is_named(store: Store, draw: Draw) -> None:
    from schemas.store import TRACE_SCHEMA, zero_of

    plant(store, WHOLE)
    row: dict[str, Any] = {field.name: zero_of(field.type) for field in TRACE_SCHEMA}
    row |= {"trace_id": (1).to_bytes(16, "big"), "version": 3, "grade": "gap", "calls": 2}
    store.append("traces_stored", [row], TRACE_SCHEMA)
    try:
        assert "the worker has said `gap`" in draw(FIRST.id)
        assert json.loads(draw("--json", FIRST.id))["traces"][0]["stored"]["version"] == 3
    finally:
        store.run("TRUNCATE TABLE traces_stored")


def test_records_of_other_kinds_do_not_make_a_call(store: Store, draw: Draw) -> None:
    (row,) = call(1, 5, [ALICE, PLANNER]).records
    plant(store, [Made(FIRST_DOOR, 5, (row | {"kind": Kind.PROGRESS},))])
    assert "is no call, trace or session" in draw(TRACE, code=2)


def asked(number: int, at: int, *, lost: bool) -> tuple[Made, Made]:
    """The planner asks the researcher's host, who calls on 20 ms later; his header may be lost."""
    ask = call(2 * number, 2 * number, [PLANNER], at=at, until=at + 100, resource='Host::"researcher:80"', action="http:POST")
    trace, parent = (2 * number + 1, bytes(8)) if lost else (2 * number, ask.span)
    return ask, call(
        trace, 2 * number + 1, [RESEARCHER], boot=SECOND_DOOR, parent=parent, at=at + 20, until=at + 60,
        resource='Host::"web:443"', action="http:GET",
    )  # fmt: skip


@pytest.mark.parametrize("whole", [False, True], ids=["two records a call", "whole"])
def test_time_names_the_cause_of_a_call_whose_header_was_lost(store: Store, draw: Draw, whole: bool) -> None:
    made = [one for number in range(1, 12) for one in asked(number, 1_000 * number, lost=number == 11)]
    ask, lost = made[-2:]
    plant(store, [one.whole for one in made] if whole else made)
    said = draw("--guess", lost.id)
    cause = f"caused by call {ask.id} of trace {22:032x} (planner to researcher:80): by time alone"
    assert f"perhaps    {cause}" in said.splitlines()
    assert json.loads(draw("--guess", "--json", lost.id))["traces"][0]["perhaps"]["call_id"] == ask.id
    assert "perhaps" not in draw(lost.id)
    assert "perhaps" not in draw("--guess", ask.id), "nobody was seen to call the planner"


def test_a_trace_is_found_by_its_index(store: Store) -> None:
    plant(store, WHOLE)
    said = store.rows(f"EXPLAIN indexes = 1 SELECT boot FROM records WHERE trace_id = unhex('{TRACE}')", user="writer")
    plan = " ".join(line.strip() for (line,) in said)
    assert re.search(r"Skip Name: trace_id Description: bloom_filter", plan), plan
