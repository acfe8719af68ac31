"""How soon is a word of control obeyed? `python -m benchmarks control [--revocations=N] [--edits=N] [--live=N,N] [--kafka=no]`.

    revoke    one agent after another, while four doors of one host decide 2,000 calls a second of those agents: from before the
              question goes out to the moment from which the last door obeys, by the doors' own word; and what the store then
              says: no call of a revoked agent was let out by a door behind its word
    edit      a policy file is written: to the moment from which the last door decides by it
    join      a host begins, with so many live revocations in the log: seconds until it is ready, and bytes of its memory and of
              its board for each of them

The first two on the embedded broker and on a real Kafka, the last on a real Kafka alone: the embedded broker keeps no such
log. Where there is no Java, or with `--kafka=no`, only what needs no Kafka is measured. Everything is the shipped command line.
"""

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pipeline.shells.controlclient import Control
from schemas.config import load_config
from schemas.process import read_run_file
from tests.support.home import Wardline, wait_until
from tests.support.kafka import Kafka, have_java

DOORS: Final = 4
RATE: Final = 2_000
REVOCATIONS: Final = 500
EDITS: Final = 100
LIVE: Final = (100_000, 1_000_000)
REVOKE_P50_MAX_MS: Final = 50.0
REVOKE_P99_MAX_MS: Final = 250.0
EDIT_P99_MAX_MS: Final = 250.0
JOIN_MAX_S: Final = 10.0
JOIN_LIVE: Final = 100_000
"""With so many a host must be ready within JOIN_MAX_S."""

WAIT_S: Final = 10.0
PAUSE_S: Final = 0.02
LOOK_S: Final = 0.05
DECIDING_S: Final = 400
"""Calls for so long are in the file."""

PART: Final = 10_000
"""Revocations in one change."""

SETTLE_S: Final = 3.0


@dataclass(slots=True)
class Found:
    """What one broker has shown, in milliseconds."""

    revoked: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    """Until the command would have said so."""
    edited: list[float] = field(default_factory=list)
    silent: int = 0
    """Changes that somebody did not acknowledge."""
    late: int = 0
    """Calls that were let out behind a door's word."""
    calls: int = 0
    seconds: float = 0.0


def main(argv: list[str]) -> int:
    """Measure and print; returns 1 when a limit is missed."""
    options = dict(word.lstrip("-").partition("=")[::2] for word in argv)
    revocations, edits = int(options.get("revocations") or REVOCATIONS), int(options.get("edits") or EDITS)
    sizes = [int(size) for size in options["live"].split(",")] if options.get("live") else list(LIVE)
    good = _report("embedded broker", _obeyed("", revocations, edits))
    if options.get("kafka") == "no" or not have_java():
        print("no real Kafka: Java and Maven are not here, or were not wanted")
        return 0 if good else 1
    with tempfile.TemporaryDirectory() as folder, Kafka(Path(folder)) as kafka:
        good = _report("Apache Kafka", _obeyed(kafka.address, revocations, edits)) and good
    for live in sizes:
        with tempfile.TemporaryDirectory() as folder, Kafka(Path(folder)) as kafka:
            good = _join(kafka.address, live) and good
    return 0 if good else 1


def _report(where: str, found: Found) -> bool:
    print(f"{where}: {found.calls / max(found.seconds, 1e-9):,.0f} calls/s by {DOORS} doors meanwhile")
    good = found.silent == 0 and found.late == 0
    lines = (
        ("revoke to the last door that obeys", found.revoked, REVOKE_P50_MAX_MS, REVOKE_P99_MAX_MS),
        ("revoke to the answer that all do  ", found.answered, None, None),
        ("edit to the last door that obeys  ", found.edited, None, EDIT_P99_MAX_MS),
    )
    for name, values, p50_max, p99_max in lines:
        p50, p99 = statistics.median(values), statistics.quantiles(values, n=100)[98]
        limits = "".join(f", p{what} at most {limit:.0f}" for what, limit in ((50, p50_max), (99, p99_max)) if limit)
        print(f"  {name}, ms  p50 {p50:6.1f}  p99 {p99:6.1f}  max {max(values):6.1f}  of {len(values)}{limits}")
        good = good and (p50_max is None or p50 <= p50_max) and (p99_max is None or p99 <= p99_max)
    print(f"  {found.silent} not acknowledged within {WAIT_S:.0f} s, {found.late} calls let out behind a door's word, of "
          f"{found.calls:,}", flush=True)  # fmt: skip
    return good


# -- revoke and edit -------------------------------------------------------------------------------------------------


def _obeyed(kafka: str, revocations: int, edits: int) -> Found:
    with tempfile.TemporaryDirectory() as folder, Wardline(Path(folder) / "home", kafka=kafka) as home:
        home.write_policies(_policies(0))
        home.start_all()
        control = Control(home.home, load_config(home.home.config))
        _quiet(control, hosts=1)
        found = Found()
        with _deciding(home, control, revocations):
            began, before = time.monotonic(), sum(int(said["calls"]) for said in _doors(home))
            words = [_revoke(control, number, found) for number in range(revocations)]
            for number in range(edits):
                _edit(home, control, number + 1, found)
            found.seconds = time.monotonic() - began
            found.calls = sum(int(said["calls"]) for said in _doors(home)) - before
        home.wait_stored()
        found.late = _late(home, words)
        return found


def _policies(number: int) -> str:
    return f'permit (principal, action, resource);\nforbid (principal == Agent::"nobody-{number}", action, resource);\n'


@contextmanager
def _deciding(home: Wardline, control: Control, agents: int) -> Iterator[None]:
    """A replay that goes on for as long as somebody asks."""
    calls = home.home.root / "calls.jsonl"
    with calls.open("w") as out:
        for number in range(RATE * DECIDING_S):
            line = {"time": number, "agent": f"agent-{number % agents}", "action": "mcp:tools/call",
                    "resource": f'Tool::"server/tool-{number % 7}"'}  # fmt: skip
            out.write(json.dumps(line, separators=(",", ":")) + "\n")
    replay = home.popen("replay", str(calls), "--rate", str(RATE), "--doors", str(DOORS))
    try:
        wait_until(lambda: replay.poll() is None and len(_doors(home)) == DOORS, 120, lambda: f"doors: {home.said('replay')}")
        _quiet(control, hosts=2)
        time.sleep(SETTLE_S)
        yield
        assert replay.poll() is None, home.said("replay")
    finally:
        if replay.poll() is None:
            replay.terminate()
            try:
                replay.wait(90)
            except subprocess.TimeoutExpired:
                replay.kill()
                replay.wait(20)


def _doors(home: Wardline) -> list[dict[str, Any]]:
    """What the living doors say of themselves, once they decide."""
    said = [read_run_file(path) for path in home.home.run.glob("door-*.json")]
    return [one for one in said if one is not None and one["alive"] and one.get("state") == "ready"]


def _quiet(control: Control, *, hosts: int) -> None:
    """Wait until so many hosts are ready and have applied everything."""

    def look() -> bool:
        epoch = int(control.ask("/status")["epoch"])
        expected = [one for one in control.ask("/acks", epoch=epoch)["hosts"] if one["expected"]]
        return len(expected) == hosts and all(one["applied"] and one["state"] == "ready" for one in expected)

    wait_until(look, 60, f"{hosts} hosts have applied everything")


def _applied(control: Control, epoch: int, policy: str, found: Found) -> dict[str, int]:
    """door -> when it began to obey, nanoseconds since 1970; a host without doors speaks for itself."""
    answer = control.ask("/acks", epoch=epoch, policy=policy, wait_s=WAIT_S)
    hosts = [host for host in answer["hosts"] if host["expected"]]
    found.silent += not all(host["applied"] for host in hosts) or sum(len(host["doors"]) for host in hosts) != DOORS
    times = {door["boot"]: int(door["applied_ns"]) for host in hosts for door in host["doors"]}
    return times | {host["boot"]: int(host["applied_ns"]) for host in hosts if not host["doors"]}


def _revoke(control: Control, number: int, found: Found) -> tuple[str, dict[str, int]]:
    began = time.time_ns()
    change = control.change("revoke", kind="agent", name=f"agent-{number}", cascade=True, reason="measured")
    times = _applied(control, change.epoch, "", found)
    found.answered.append((time.time_ns() - began) / 1e6)
    found.revoked.append((max(times.values()) - began) / 1e6)
    time.sleep(PAUSE_S)
    return f"agent-{number}", times


def _edit(home: Wardline, control: Control, number: int, found: Found) -> None:
    before = str(control.ask("/policy")["digest"])
    began = time.time_ns()
    home.write_policies(_policies(number))
    known = control.ask("/policy")
    while known["digest"] == before:
        time.sleep(LOOK_S)
        assert time.time_ns() - began < WAIT_S * 1e9, f"the edit is not seen: {known}"
        known = control.ask("/policy")
    times = _applied(control, int(known["epoch"]), str(known["digest"]), found)
    found.edited.append((max(times.values()) - began) / 1e6)
    time.sleep(PAUSE_S)


def _late(home: Wardline, words: Sequence[tuple[str, dict[str, int]]]) -> int:
    """Calls that the store has of a revoked agent, let out by a door behind its word."""
    rows = home.sql("SELECT agent, lower(hex(boot)), max(toUnixTimestamp64Micro(recorded)) FROM calls WHERE verdict = 'allow'"
                    " GROUP BY agent, boot")  # fmt: skip
    last = {(str(agent), str(boot)): int(at) for agent, boot, at in rows}
    # whole microseconds: a record of the same one may be on either side of the word
    return sum(last.get((agent, boot), 0) > at_ns // 1000 for agent, times in words for boot, at_ns in times.items())


# -- join ------------------------------------------------------------------------------------------------------------


def _join(kafka: str, live: int) -> bool:
    with tempfile.TemporaryDirectory() as folder, Wardline(Path(folder) / "home", kafka=kafka) as home:
        home.write_policies(_policies(0))
        home.start_all()
        bare = _memory(home.pid("enforce-1"))
        control = Control(home.home, load_config(home.home.config))
        began = time.monotonic()
        for first in range(0, live, PART):
            items = [{"kind": "token", "name": f"{number:064x}", "reason": "measured"}
                     for number in range(first, min(first + PART, live))]  # fmt: skip
            control.change("revoke-many", items=items)
        wait_until(lambda: _published(control), 600, "everything is published")
        filled = time.monotonic() - began
        began = time.monotonic()
        home.start("enforce-2", wait=False)
        home.wait_ready("enforce-2", seconds=300)
        seconds = time.monotonic() - began
        memory = (_memory(home.pid("enforce-2")) - bare) / live
        board = sum(path.stat().st_size for path in home.home.host("enforce-2").glob("board*")) / live
    limit = f", at most {JOIN_MAX_S:.0f}" if live <= JOIN_LIVE else ""
    print(f"{live:,} live revocations: made and published in {filled:.1f} s, a new host is ready in {seconds:.1f} s{limit}; "
          f"{memory:.0f} bytes of its memory and {board:.0f} of its board for each", flush=True)  # fmt: skip
    return live > JOIN_LIVE or seconds <= JOIN_MAX_S


def _published(control: Control) -> bool:
    said = control.ask("/status")
    return bool(said["published"] == said["epoch"])


def _memory(pid: int) -> int:
    """Bytes of a process that are in memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024
