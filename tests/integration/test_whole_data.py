"""Data that nobody here wrote, through everything: decided, recorded, stored once, put together, looked at, found again.

The logs are told as they were made, in years long gone: time is the calls' own. What was found is what the worker finds again
when it has lost all that it knew.
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import weblogs
from pipeline.cli.asking import asking
from schemas.config import load_config
from schemas.findings import DETECTORS, parse_finding, severity
from schemas.process import read_run_file
from tests.support.data import data_folder
from tests.support.home import Wardline, wait_until
from tests.support.jobs import CALLS, agentdojo_calls, every, install_policies

pytestmark = pytest.mark.data

REQUESTS = 39_059
WEB = """
@id("web")
permit (principal, action in Action::"http", resource is Host);
"""
SOME = ("rita-10.55.100.109", "rita-10.55.182.100")
"""One host with the script that calls home, and one without."""

SETTLED_S = 120.0
ASKED = 12
"""Findings of each detector whose question is asked."""


class Told:
    """A home that some files are told to."""

    def __init__(self, home: Wardline) -> None:
        self.home = home
        self.lines: list[dict[str, Any]] = []
        install_policies(home)
        home.write_policies(WEB, "90-web.cedar")
        home.up()

    def tell(self, file: Path) -> None:
        """Replay a file to its end, and wait until all of its calls are looked at."""
        self.lines += map(json.loads, file.read_text().splitlines())
        self.home.replay(file)
        wait_until(lambda: self._looked()["calls"] >= len(self.lines), SETTLED_S, lambda: f"all is looked at: {self._looked()}")
        assert self._looked()["defects"] == 0

    def _looked(self) -> dict[str, Any]:
        said = read_run_file(self.home.home.run_file("work-1")) or {}
        return dict(said.get("lookout") or {"calls": -1, "rebuilding": [1], "partitions": []})

    def forget(self) -> None:
        """The worker dies, and all that it knew with it; wait until it has read it again."""
        partitions = self._looked()["partitions"]
        self.home.kill("work-1")
        self.home.wait_ready("work-1")
        wait_until(lambda: self._looked()["partitions"] == partitions, SETTLED_S, lambda: f"all is read: {self._looked()}")

    def findings(self) -> list[dict[str, Any]]:
        """The view."""
        with asking(self.home.home, load_config(self.home.home.config)) as store:
            return store.rows("SELECT * FROM findings ORDER BY id")

    # -- what must hold ----------------------------------------------------------------------------------------------

    def assert_stored_once(self) -> None:
        """Every line is one call, and nothing is missing."""
        total = len(self.lines)
        assert self.home.sql("SELECT count(), uniqExact(call_id) FROM calls") == [(total, total)]
        assert self.home.sql("SELECT * FROM gaps") == []

    def assert_put_together(self) -> None:
        """Calls of one trace are one trace, with everybody that the file names in it."""
        expected = {trace: count for trace, count in Counter(line.get("trace_id") for line in self.lines).items()
                    if trace and count > 1}  # fmt: skip

        def rows() -> list[Any]:
            return list(self.home.sql("SELECT trace_id, calls, root FROM traces WHERE calls > 1"))

        # of calls that name no parent nothing is said before their trace has settled
        wait_until(lambda: len(rows()) >= len(expected), 60, lambda: f"{len(rows())} of {len(expected)} traces have rows")
        traces = rows()
        assert {trace: calls for trace, calls, _ in traces} == expected
        assert {root for *_, root in traces} <= {'User::"Emma Johnson"'}

    def assert_found(self) -> None:
        """What is found can be computed and asked again: scores from their terms, calls by the question."""
        found = self.findings()
        assert len({one["id"] for one in found}) == len(found)
        assert {one["detector"] for one in found} <= set(DETECTORS)
        calls = {call for (call,) in self.home.sql("SELECT call_id FROM calls")}
        asked: Counter[str] = Counter()
        for row in found:
            finding = parse_finding(row)
            assert (finding.id, finding.score, severity(finding.score)) == (row["id"], row["score"], row["severity"])
            assert finding.calls_count >= len(finding.calls)
            assert set(finding.calls) <= calls
            asked[finding.detector] += 1
            if asked[finding.detector] <= ASKED and row["state"] == "open":
                ids = {str(call) for (call,) in self.home.sql(f"SELECT call_id FROM ({row['sql']})")}
                assert ids
                assert set(finding.calls) <= ids, f"{finding.title}: {row['sql']}"

    def assert_found_again(self) -> None:
        """A worker that knows nothing finds the same."""
        before = self.findings()
        self.forget()
        for one in (*before, *(after := self.findings())):
            del one["stored"], one["worker"]
        assert after == before

    def beacons(self) -> set[tuple[str, str]]:
        """Who calls home, and where."""
        found = self.home.sql("SELECT agent, host FROM findings WHERE detector = 'beacon' AND state = 'open'")
        return {(str(agent), str(host)) for agent, host in found}


def write(lines: Iterable[str], out: Path) -> Path:
    out.write_text("".join(f"{line}\n" for line in lines))
    return out


@pytest.mark.soak
def test_some_of_the_web_logs_and_of_agentdojo(wardline: Wardline, tmp_path: Path) -> None:
    whole = tmp_path / "web.jsonl"
    assert weblogs.main([str(data_folder()), str(whole)]) == 0
    some = [line for line in whole.read_text().splitlines() if json.loads(line)["agent"] in SOME]
    told = Told(wardline)
    told.tell(write(some, tmp_path / "some.jsonl"))
    told.tell(every(agentdojo_calls(), 200, tmp_path / "agentdojo.jsonl"))
    told.assert_stored_once()
    told.assert_put_together()
    told.assert_found()
    assert told.beacons() == {(SOME[0], "www.alexa.com")}


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_all_of_the_web_logs_and_of_agentdojo(wardline: Wardline, tmp_path: Path) -> None:
    whole = tmp_path / "web.jsonl"
    assert weblogs.main([str(data_folder()), str(whole)]) == 0
    told = Told(wardline)
    told.tell(whole)
    told.tell(agentdojo_calls())
    assert len(told.lines) == REQUESTS + CALLS
    told.assert_stored_once()
    told.assert_put_together()
    told.assert_found()
    told.assert_found_again()
    scripted = {line["agent"] for line in told.lines if line["resource"] == 'Host::"www.alexa.com:80"'}
    assert told.beacons() >= {(agent, "www.alexa.com") for agent in scripted}
