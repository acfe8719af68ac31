"""Calls are not slowed by the SIEM: the same calls with and without the process, its sinks slow or away, every refusal sent.

The process has a processor's time to itself only as far as calls leave it some: what is compared is a ratio on one machine.
"""

import json
import os
import socket
import time
from pathlib import Path

import pytest

from tests.support.home import Wardline
from tests.support.receivers import TOKEN, Collector, within

CALLS = 20_000
REFUSED_EACH = 10
RUNS = 3
RATIO_MIN = 0.8
RSS_MAX = 400 << 20

POLICIES = """
@id("all") permit (principal, action, resource);
@id("no-paste") forbid (principal, action, resource == Host::"paste.example:443");
"""

CONFIG = """
[egress]
doors = 0

[[siem]]
name = "lines"
path = "alerts.jsonl"
events = ["findings", "revocations", "refusals"]

[[siem]]
name = "slow"
kind = "splunk"
url = "http://127.0.0.1:{slow}"
token_file = "{token}"
events = ["refusals"]

[[siem]]
name = "away"
kind = "splunk"
url = "http://127.0.0.1:{away}"
token_file = "{token}"
events = ["refusals"]
"""


def recorded(path: Path, run: int) -> Path:
    """A file of calls of a few agents, each tenth of them refused."""
    with path.open("w") as out:
        for number in range(CALLS):
            host = "paste.example" if number % REFUSED_EACH == 0 else f"h{number % 50}.example"
            call = {"time": 1_790_000_000 + number / 1000, "agent": f"agent-{number % 7}", "action": "http:GET",
                    "session": f"run-{run}", "resource": f'Host::"{host}:443"', "bytes_in": 10}  # fmt: skip
            out.write(json.dumps(call) + "\n")
    return path


def cpu_s(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_calls_are_not_slowed_and_every_refusal_is_sent(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        away = nobody.getsockname()[1]
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text(TOKEN)
    slow = Collector()

    def answer(events: list[dict[str, object]]) -> tuple[int, dict[str, object]]:
        time.sleep(1.0)
        return 200, {"text": "Success", "code": 0}

    slow.answer = answer
    config = CONFIG.format(slow=slow.port, away=away, token=token)
    files = [recorded(tmp_path / f"calls-{run}.jsonl", run) for run in range(RUNS)]
    times: dict[str, list[float]] = {"without": [], "with": []}
    doorless = "[egress]\ndoors = 0\n"
    with Wardline(tmp_path / "without", config=doorless) as plain, Wardline(tmp_path / "with", config=config) as fed:
        for home in (plain, fed):
            home.write_policies(POLICIES)
            home.start_all()
        pid = fed.start("siem")
        begun, used = time.monotonic(), cpu_s(pid)
        for file in files:
            for name, home in (("without", plain), ("with", fed)):
                started = time.monotonic()
                home.replay(file)
                times[name].append(time.monotonic() - started)
        wanted = RUNS * CALLS // REFUSED_EACH
        lines = fed.home.root / "alerts.jsonl"
        found: set[str] = set()

        def all_there() -> bool:
            files = [lines, *lines.parent.glob("alerts.jsonl.*")]
            events = [json.loads(line) for one in files for line in one.read_text().splitlines()]
            found.update(event["metadata"]["uid"] for event in events if event["class_uid"] == 4002)  # findings come too
            return len(found) >= wanted

        within(300, all_there)
        share = (cpu_s(pid) - used) / (time.monotonic() - begun)
        peak = rss(pid)
        assert fed.sql("SELECT countIf(verdict = 'deny'), count() FROM calls") == [(wanted, RUNS * CALLS)]
    slow.close()
    ratio = min(times["without"]) / min(times["with"])
    print(f"\nreplay of {CALLS:,} calls: {min(times['without']):.1f} s without, {min(times['with']):.1f} s with the process"
          f" ({ratio:.2f} of the rate); it took {share:.0%} of a processor and {peak >> 20} MiB, three sinks,"
          f" {wanted:,} refusals each")  # fmt: skip
    assert len(found) == wanted
    assert ratio >= RATIO_MIN
    assert peak < RSS_MAX
