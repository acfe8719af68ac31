"""The recorded calls that Wardline comes with: `python -m benchmarks.sample OUT.jsonl`. Made, with a fixed seed; nobody's data.

A day at a small company: people give tasks to agents, an agent hands work to others, and they call tools of MCP servers and
hosts on the network. Chains have 1 to 4 principals. Under the example policies most calls pass; some are refused for what those
forbid (a sub-agent that sends or pays, a password, a paste site, a raw tunnel), some since nothing permits them.
"""

import hashlib
import json
import random
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from schemas.vocabulary import agent_uid, host_uid, service_uid, tool_uid, user_uid

SEED: Final = 2026
CALLS: Final = 1000
START: Final = datetime(2026, 3, 2, 7, 0, tzinfo=UTC)

CHAINS: Final = (
    # who asks, which agents the task passes through, how often
    (user_uid("alice"), ("assistant",), 5),
    (user_uid("bob"), ("assistant",), 4),
    (user_uid("alice"), ("planner",), 3),
    (user_uid("alice"), ("planner", "researcher"), 5),
    (user_uid("carol"), ("planner", "summarizer"), 3),
    (user_uid("bob"), ("planner", "researcher", "summarizer"), 3),
    (service_uid("nightly-report"), ("planner", "researcher"), 2),
    ("", ("researcher",), 2),
    (user_uid("dave"), ("shadow-agent",), 1),
)
TOOLS: Final = (
    # server, tool, bytes out, bytes in, how often
    ("workspace", "search_files", 60, 4_000, 9),
    ("workspace", "get_file_by_id", 40, 20_000, 6),
    ("workspace", "search_emails", 70, 9_000, 7),
    ("workspace", "get_day_calendar_events", 40, 2_000, 4),
    ("workspace", "send_email", 1_500, 200, 4),
    ("workspace", "share_file", 90, 120, 2),
    ("workspace", "delete_file", 40, 60, 1),
    ("slack", "read_channel_messages", 50, 6_000, 6),
    ("slack", "send_channel_message", 400, 80, 3),
    ("travel", "get_hotels_prices", 80, 1_200, 3),
    ("travel", "reserve_hotel", 150, 200, 1),
    ("banking", "get_most_recent_transactions", 30, 3_000, 3),
    ("banking", "send_money", 160, 120, 2),
    ("banking", "update_password", 60, 60, 1),
)
HOSTS: Final = (
    # name, port, action, bytes out, bytes in, how often
    ("en.wikipedia.org", 443, "http:GET", 300, 60_000, 7),
    ("docs.python.org", 443, "http:GET", 300, 40_000, 5),
    ("www.rfc-editor.org", 443, "http:GET", 280, 90_000, 3),
    ("api.example.com", 443, "http:POST", 2_500, 700, 5),
    ("api.example.com", 443, "http:GET", 350, 5_000, 4),
    ("en.wikipedia.org", 443, "http:POST", 900, 1_200, 1),
    ("pastebin.com", 443, "http:POST", 8_000, 300, 1),
    ("203.0.113.7", 22, "tcp:CONNECT", 5_000, 4_000, 1),
)
ERRORS: Final = ("timed out after 30 s", "the server answered 503", "no such file", "rate limit reached")


def main(argv: list[str]) -> int:
    """Write the sample to `argv[0]`; returns the exit code."""
    if len(argv) != 1:
        print("usage: python -m benchmarks.sample OUT.jsonl", file=sys.stderr)
        return 2
    Path(argv[0]).write_text("".join(f"{json.dumps(line, separators=(',', ':'))}\n" for line in lines()), encoding="utf-8")
    return 0


def lines() -> Iterator[dict[str, Any]]:
    """The calls, in the order of their times."""
    dice = random.Random(SEED)
    made: list[dict[str, Any]] = []
    task = 0
    while len(made) < CALLS:
        task += 1
        made += _task(dice, task)[: CALLS - len(made)]
    yield from sorted(made, key=lambda line: str(line["time"]))


def _task(dice: random.Random, number: int) -> list[dict[str, Any]]:
    """One task: the calls of every agent that it passes through share a session and a trace."""
    root, agents, _ = dice.choices(CHAINS, [often for *_, often in CHAINS])[0]
    session = f"task-{number:04d}"
    trace = hashlib.sha256(f"sample:{session}".encode()).hexdigest()[:32]
    at = START + timedelta(seconds=dice.uniform(0, 10 * 3600))
    calls = []
    for depth in range(1, len(agents) + 1):
        chain = [*([root] if root else []), *map(agent_uid, agents[:depth])]
        for _ in range(dice.randint(1, 6)):
            at += timedelta(seconds=dice.expovariate(1 / 4))
            calls.append(_call(dice, at, session, trace, agents[depth - 1], chain))
    return calls


def _call(dice: random.Random, at: datetime, session: str, trace: str, agent: str, chain: list[str]) -> dict[str, Any]:
    if dice.random() < 0.65:
        server, tool, out, back, _ = dice.choices(TOOLS, [often for *_, often in TOOLS])[0]
        action, resource, status = "mcp:tools/call", tool_uid(server, tool), 0
    else:
        name, port, action, out, back, _ = dice.choices(HOSTS, [often for *_, often in HOSTS])[0]
        resource, status = host_uid(name, port), 200
    time = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line: dict[str, Any] = {
        "time": time, "agent": agent, "chain": chain, "session": session, "action": action, "resource": resource,
        "bytes_out": _about(dice, out), "bytes_in": _about(dice, back),
        "duration_ms": round(dice.lognormvariate(4.5, 0.8), 1), "trace_id": trace,
    }  # fmt: skip
    if dice.random() < 0.04:
        line |= {"bytes_in": 0, "outcome": "error", "error": dice.choice(ERRORS)}
        status = status and 503
    else:
        line["outcome"] = "ok"
    return line | ({"status": status} if status else {})


def _about(dice: random.Random, size: int) -> int:
    return max(1, round(size * dice.lognormvariate(0, 0.4)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
