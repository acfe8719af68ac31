"""The main job on real input: AgentDojo's calls as a file, what Cedar itself says of each, and the check of what was stored."""

import fcntl
import functools
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import agentdojo
from pipeline.policy.load import load_bundle
from schemas.vocabulary import action_uid
from tests.support.data import REPOSITORY, data_folder
from tests.support.home import Wardline
from tests.support.policies import Cedar

EXAMPLES = REPOSITORY / "pipeline" / "cli" / "examples"
POLICIES = EXAMPLES / "policies"
CACHE = REPOSITORY / ".cache" / "agentdojo.jsonl"
CALLS = 137_374


def agentdojo_calls() -> Path:
    """All of AgentDojo as a recorded-calls file; made once for a checkout (by whoever changes the maker: remove `.cache`)."""
    archive = data_folder() / "agentdojo"
    CACHE.parent.mkdir(exist_ok=True)
    with CACHE.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if not CACHE.exists():
            part = CACHE.with_suffix(".part")
            assert agentdojo.main([str(archive), str(part)]) == 0
            part.rename(CACHE)
    return CACHE


def every(file: Path, step: int, out: Path) -> Path:
    """Each `step`th line of a file."""
    with file.open("rb") as lines, out.open("wb") as part:
        part.writelines(line for number, line in enumerate(lines) if number % step == 0)
    return out


def chained(file: Path, count: int, out: Path, *, seed: int = 1) -> Path:
    """Lines of AgentDojo whose calls are handed on: chains of 1 to 6 agents, drawn from all of its agents and the examples'."""
    rng = random.Random(seed)
    lines = [json.loads(line) for line in _some(file, count)]
    agents = [*sorted({line["agent"] for line in lines}), "planner", "researcher", "summarizer", "nobody-knows"]
    with out.open("w") as part:
        for number, line in enumerate(lines):
            links = [rng.choice(agents) for _ in range(number % 6)] + [line["agent"]]
            line["chain"] = [line["chain"][0], *(f'Agent::"{name}"' for name in links)]
            part.write(json.dumps(line) + "\n")
    return out


def _some(file: Path, count: int) -> Iterator[bytes]:
    with file.open("rb") as lines:
        step = CALLS // count
        yield from (line for number, line in enumerate(lines) if number % step == 0)


@dataclass(frozen=True, slots=True)
class Line:
    """What one line of a file asks, and what Cedar says of it."""

    agent: str
    action: str
    resource: str
    allow: bool


@functools.cache
def _cedar(agents: tuple[str, ...], actions: tuple[str, ...], resources: tuple[str, ...]) -> Cedar:
    text = "".join(path.read_text() for path in sorted(POLICIES.glob("*.cedar")))
    bundle = load_bundle(POLICIES)
    # the ids in the order in which Cedar numbers the policies: that of the text; only the verdicts are compared here
    return Cedar(text, bundle.parents, [*agents, *actions, *resources], [rule.id for rule in bundle.rules])


def judged(file: Path) -> list[Line]:
    """Every line of a file, with the AND of Cedar's answers over the agents of its chain under the example policies."""
    with file.open() as lines:
        said = [json.loads(line) for line in lines]
    asked: dict[tuple[str, str, str], bool] = {}
    for line in said:
        for link in _agents(line):
            asked[link, action_uid(line["action"]), line["resource"]] = False
    cedar = _cedar(*(tuple(sorted({question[i] for question in asked})) for i in range(3)))
    questions = list(asked)
    for question, (permits, _) in zip(questions, cedar.ask(questions), strict=True):
        asked[question] = bool(permits)
    return [
        Line(
            agent=line["agent"], action=line["action"], resource=line["resource"],
            allow=all(asked[link, action_uid(line["action"]), line["resource"]] for link in _agents(line)),
        )
        for line in said
    ]  # fmt: skip


def _agents(line: dict[str, Any]) -> list[str]:
    return [uid for uid in line["chain"] if uid.startswith("Agent::")]


def install_policies(home: Wardline) -> None:
    """Put the example policies into a home."""
    for path in POLICIES.iterdir():
        home.write_policies(path.read_text(), path.name)


def assert_recorded(home: Wardline, expected: Sequence[Line], *, lost_at_most: int = 0, times: int = 1) -> None:
    """Each line of a replayed file is one call, in the table once, with Cedar's verdict; and nothing is missing.

    `times`: how often the file was replayed. `lost_at_most`: calls whose door may have died between decision and effect.
    """
    total = len(expected) * times
    assert home.sql("SELECT count(), uniqExact(call_id) FROM calls") == [(total, total)]
    assert home.sql("SELECT * FROM gaps") == []
    # in the table itself, not only in the view
    rows, distinct = home.sql("SELECT count(), uniqExact(boot, seq) FROM records WHERE kind != 0")[0]
    assert rows == distinct
    rows, distinct = home.sql("SELECT count(), uniqExact(enforcer, call_seq, partition, seq) FROM records WHERE kind = 0")[0]
    assert rows == distinct
    found = home.sql("SELECT ref, agent, action, resource, verdict, outcome, door FROM calls ORDER BY ref, call_id")
    lost = 0
    for number, (ref, agent, action, resource, verdict, outcome, door) in enumerate(found):
        line = expected[number // times]
        where = f"line {ref}"
        assert (ref, door) == (number // times + 1, "replay"), where
        assert (agent, action, resource, verdict == "allow") == (line.agent, line.action, line.resource, line.allow), where
        assert outcome in (("ok", "error", "lost") if line.allow else ("refused",)), where
        lost += outcome == "lost"
    assert lost <= lost_at_most


def verdicts(expected: Iterable[Line]) -> tuple[int, int]:
    """Allowed and refused lines."""
    allowed = [line.allow for line in expected]
    return sum(allowed), len(allowed) - sum(allowed)
