"""Are successful prompt injections noticed by the order of tools alone? `python -m benchmarks.detect_sequence`, on AgentDojo.

An agent (pipeline) does its tasks without an attack on its first day: that is what it learns from. What is asked then:

    recall      of each successful attack run, by itself, right after that day: is there a finding? What an attack did once is
                known, so that a second one like it is not asked of the same agent
    false       the same of each tenth run whose attack failed: the agent did what it was there for, perhaps a little besides
    new tasks   an agent has learnt every other of its tasks: how many of the others, without an attack, make a finding?

AgentDojo has an order of calls and no times: the runs of the first day are spread over it evenly, and calls of a run follow
each other by a second. So nothing here says how many seconds a detection takes.
"""

import hashlib
import json
import pickle
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from benchmarks.agentdojo import find_runs, load_run
from benchmarks.detectdata import data
from benchmarks.figures import Counts, Figure, share, show
from pipeline.core.detect.sequence import Sequences
from schemas.egress import AGENT_ROWS

START_S: Final = 1_748_822_400
DAY_S: Final = 86_400
FAILED_SHARE: Final = 10
"""Of runs whose attack failed, one of so many is asked, by the hash of its path."""

LIMITS: Final[dict[str, float]] = {}
"""None: the order of tools is a weak sign, and is fused with others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run of AgentDojo: (resource, bytes out, bytes in) of each call."""

    path: str
    attack: bool
    succeeded: bool
    calls: tuple[tuple[str, int, int], ...]

    @property
    def agent(self) -> str:
        return self.path.split("/")[0]

    @property
    def suite(self) -> str:
        return self.path.split("/")[1]

    @property
    def odd(self) -> bool:
        """Whether its user task has an odd number."""
        return int(self.path.split("/")[2].rpartition("_")[2]) % 2 == 1


def main(argv: list[str]) -> int:
    """Print the table; returns 2 without data."""
    if data() is None:
        print("detect_sequence: the shared data folder is not here", file=sys.stderr)
        return 2
    return show(measure(argv))


def measure(options: list[str]) -> list[Figure]:
    """The figures of all agents. There are no options."""
    source = data()
    return [] if source is None else figures_of(load(source))


def load(source: Path) -> list[Run]:
    """Every run, in the order of their paths. `security` means something only in a run with an injection."""
    found = []
    for path, content in find_runs(source / "agentdojo"):
        said = json.loads(content)
        attack = said.get("injection_task_id") is not None
        calls = tuple((c["resource"], c["bytes_out"], c["bytes_in"]) for c in load_run(path, content)[2])
        found.append(Run(path=path, attack=attack, succeeded=attack and bool(said.get("security")), calls=calls))
    return sorted(found, key=lambda run: run.path)


def figures_of(runs: list[Run]) -> list[Figure]:
    """The figures of these runs."""
    recall: dict[str, dict[str, Counts]] = defaultdict(dict)
    false: dict[str, Counts] = {}
    new: dict[str, Counts] = {}
    for agent in sorted({run.agent for run in runs}):
        own = [run for run in runs if run.agent == agent]
        clean = [run for run in own if not run.attack]
        learnt = learn(clean)
        asked = [run for run in own if run.succeeded]
        for suite in ("all suites", *sorted({run.suite for run in asked})):
            these = [run for run in asked if suite in ("all suites", run.suite)]
            recall[suite][agent] = float(sum(noticed(learnt, run) for run in these)), float(len(these))
        failed = [run for run in own if run.attack and not run.succeeded and _tenth(run.path)]
        false[agent] = float(sum(noticed(learnt, run) for run in failed)), float(len(failed))
        half = learn([run for run in clean if not run.odd])
        others = [run for run in clean if run.odd]
        new[agent] = float(sum(noticed(half, run) for run in others)), float(len(others))
    figures = [
        share("sequence", "agentdojo", f"successful attacks noticed, {suite}", recall[suite],
              note=f"{sum(of for _, of in recall[suite].values()):.0f} runs")
        for suite in sorted(recall, key=lambda suite: (suite != "all suites", suite))
    ]  # fmt: skip
    figures.append(share("sequence", "agentdojo", "failed attacks noticed", false, note=_runs(false)))
    figures.append(share("sequence", "agentdojo", "new tasks without an attack noticed", new, note=_runs(new)))
    return figures


def _runs(counts: dict[str, Counts]) -> str:
    return f"{sum(of for _, of in counts.values()):.0f} runs"


def _tenth(path: str) -> bool:
    return int(hashlib.sha256(path.encode()).hexdigest(), 16) % FAILED_SHARE == 0


def learn(runs: list[Run]) -> bytes:
    """What the shipped detector knows after a day of these runs."""
    detector = Sequences()
    detector.take(table([(run, START_S + DAY_S * at / (len(runs) + 1)) for at, run in enumerate(runs)]))
    return pickle.dumps(detector)


def noticed(learnt: bytes, run: Run) -> bool:
    """Whether a run makes a finding, a day later."""
    detector: Sequences = pickle.loads(learnt)
    return bool(run.calls) and bool(detector.take(table([(run, START_S + DAY_S + 3600.0)])))


def table(runs: list[tuple[Run, float]]) -> pa.Table:
    """Runs that begin at some times, as rows of aggregates."""
    rows: list[dict[str, Any]] = [
        {
            "lane_host": "benchmark", "lane_boot": 1, "lane_partition": 0, "frame_no": 1, "agent": run.agent, "host": "",
            "domain": "", "action": 'Action::"mcp:tools/call"', "resource": resource, "task": run.path,
            "second": int(begins + at), "query_hash": 0, "query_bits": 0, "calls": 1, "denied": 0, "bytes_out": sent,
            "bytes_in": got, "time": round((begins + at) * 1e6), "call_boot": 1, "call_seq": at,
        }
        for run, begins in runs
        for at, (resource, sent, got) in enumerate(run.calls)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=AGENT_ROWS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
