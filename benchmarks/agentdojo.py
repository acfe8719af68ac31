"""AgentDojo's runs as recorded calls: `python -m benchmarks.agentdojo SRC OUT.jsonl`, one tool call a line.

SRC is the folder with `agentdojo-runs.tar.xz`, or one with the runs unpacked (PIPELINE/SUITE/USER_TASK/ATTACK/INJECTION.json).
What a line says, and where it comes from:

    agent, chain    `User::"Emma Johnson"` (the user that every system prompt names) -> agent PIPELINE. The name is the
                    folder's: Meta-SecAlign* and meta-llama* call their pipeline `local` inside. 29 agents
    action          `mcp:tools/call`
    resource        `Tool::"SUITE/FUNCTION"`: a suite (banking, slack, travel, workspace) is one MCP server. Models also call
                    tools that do not exist, one of them `<empty-function-name>`; they are in, since an enforcer sees them too
    session         the run path, without `.json`
    trace_id        from the run path, so that a run's calls share a trace
    parent_span     from run path and index: (trace_id, parent_span) names one call. Tool-call ids repeat inside a run
    bytes_out       UTF-8 bytes of the arguments as compact JSON       bytes_in   UTF-8 bytes of the tool's answer
    outcome, error  `error` with the tool's error text, or with `no result in the run` where the run ended before an answer
    time            made: AgentDojo has an order and a duration of each run, and no time of a call. Runs follow each other in
                    the order of their paths from START on, a second apart; the calls of a run are spread evenly over it

The same source gives the same bytes, whether packed or unpacked.
"""

import hashlib
import json
import sys
import tarfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from schemas.vocabulary import agent_uid, tool_uid, user_uid

ARCHIVE: Final = "agentdojo-runs.tar.xz"
START: Final = datetime(2025, 6, 2, tzinfo=UTC)
ROOT: Final = "Emma Johnson"
GAP: Final = timedelta(seconds=1)
RUN_PARTS: Final = 5
"""PIPELINE/SUITE/USER_TASK/ATTACK/INJECTION"""

Run = tuple[str, float, list[dict[str, Any]]]
"""Path, duration in seconds, and its calls without what depends on other runs."""


def main(argv: list[str]) -> int:
    """Write the calls of every run under `argv[0]` to `argv[1]`; returns the exit code."""
    if len(argv) != 2:
        print("usage: python -m benchmarks.agentdojo SRC OUT.jsonl", file=sys.stderr)
        return 2
    source, target = map(Path, argv)
    try:
        runs = sorted(load_run(path, data) for path, data in find_runs(source))
        if not runs:
            raise FileNotFoundError(f"no {ARCHIVE} and no run in it")
        calls = 0
        with target.open("w", encoding="utf-8", newline="\n") as out:
            for line in lines(runs):
                out.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")
                calls += 1
    except (OSError, ValueError, KeyError, TypeError, tarfile.TarError) as fault:
        print(f"{source}: {str(fault) or type(fault).__name__}", file=sys.stderr)
        return 2
    print(f"{target}: {calls} calls of {len(runs)} runs")
    return 0


def find_runs(source: Path) -> Iterator[tuple[str, bytes]]:
    """Every run's path and bytes, in the order in which they lie there."""
    archive = source / ARCHIVE
    if archive.exists():
        with tarfile.open(archive, "r|xz") as tar:
            for member in tar:
                if member.isfile() and member.name.endswith(".json"):
                    file = tar.extractfile(member)
                    assert file is not None
                    yield run_path(member.name), file.read()
        return
    for path in source.rglob("*.json"):
        yield run_path(path.relative_to(source).as_posix()), path.read_bytes()


def run_path(name: str) -> str:
    """The last five parts of a file's name: they name the run wherever it was unpacked."""
    parts = name.removesuffix(".json").split("/")[-RUN_PARTS:]
    if len(parts) < RUN_PARTS:
        raise ValueError(f"`{name}` is not PIPELINE/SUITE/USER_TASK/ATTACK/INJECTION.json")
    return "/".join(parts)


def load_run(path: str, data: bytes) -> Run:
    """One run: answers follow calls in order, so the n-th answer is that of the n-th call."""
    run = json.loads(data)
    if not isinstance(run, dict) or not isinstance(run.get("messages"), list):
        raise ValueError(f"`{path}` has no messages: it is no run")
    messages = run["messages"]
    calls = [call for m in messages if m["role"] == "assistant" for call in m.get("tool_calls") or ()]
    answers = [m for m in messages if m["role"] == "tool"]
    if len(answers) > len(calls):
        raise ValueError(f"`{path}` has {len(answers)} answers to {len(calls)} calls")
    found = []
    for index, call in enumerate(calls):
        answer = answers[index] if index < len(answers) else None
        if answer is not None and answer["tool_call"]["function"] != call["function"]:
            raise ValueError(f"`{path}` answers `{answer['tool_call']['function']}` where call {index} is `{call['function']}`")
        found.append(_call(path, index, call, answer))
    return path, run.get("duration") or 0.0, found


def _call(path: str, index: int, call: dict[str, Any], answer: dict[str, Any] | None) -> dict[str, Any]:
    pipeline, suite = path.split("/")[:2]
    fields = {
        "agent": pipeline,
        "chain": [user_uid(ROOT), agent_uid(pipeline)],
        "session": path,
        "action": "mcp:tools/call",
        "resource": tool_uid(suite, call["function"]),
        "bytes_out": len(json.dumps(call["args"], ensure_ascii=False, separators=(",", ":")).encode()),
        "bytes_in": 0 if answer is None else len(_text(answer["content"]).encode()),
        "trace_id": _digest(path)[:32],
        "parent_span": _digest(f"{path}#{index}")[:16],
    }
    error = "no result in the run" if answer is None else answer.get("error")
    return fields | ({"outcome": "ok"} if error is None else {"outcome": "error", "error": error or "error without a text"})


def _text(content: str | list[dict[str, Any]] | None) -> str:
    if isinstance(content, list):
        return "".join(part["content"] for part in content)
    return content or ""


def _digest(text: str) -> str:
    return hashlib.sha256(f"agentdojo:{text}".encode()).hexdigest()


def lines(runs: Iterable[Run]) -> Iterator[dict[str, Any]]:
    """The calls of sorted runs with the times that are made for them."""
    begins = START
    for _, seconds, calls in runs:
        for index, call in enumerate(calls, 1):
            at = begins + timedelta(seconds=seconds * index / (len(calls) + 1))
            yield {"time": at.isoformat(timespec="microseconds").replace("+00:00", "Z")} | call
        begins += timedelta(seconds=seconds) + GAP


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
