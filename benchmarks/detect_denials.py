"""Are bursts of refusals noticed, and ordinary ones let be? `python -m benchmarks.detect_denials`.

    web logs     answers 401, 403 and 407 as refusals: three logs without an attack by them, so every finding is false
    cloudtrail   an account under simulated attack (Stratus Red Team): calls that AWS refused for want of a right. Two of its
                 techniques try in a loop what they may not (ec2-get-password-data, ec2 get-usr-data)

Beside the detector stands CUSUM with h = 5 sigma on the same windows and past (the field's other way, detection of a drift): it
is not shipped, since at rates near zero, which are the rule, 5 sigma are two refusals.
"""

import json
import math
import sys
import tarfile
from collections import defaultdict
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from benchmarks import weblogs
from benchmarks.detect_beacon import row
from benchmarks.detectdata import data
from benchmarks.figures import Counts, Figure, share, show
from pipeline.core.detect.denials import RATE_MIN, WINDOW_US, DenyBursts, rate_of
from schemas.egress import AGENT_ROWS
from schemas.limits import FRAME_RECORDS_MAX

REFUSED: Final = frozenset({401, 403, 407})
DENIED: Final = frozenset({"AccessDenied", "AccessDeniedException", "Client.UnauthorizedOperation", "UnauthorizedOperation"})
LOOPS: Final = ("stratus-red-team-ec2-get-password-data-role", "stratus-red-team-get-usr-data-role")
CUSUM_SIGMAS: Final = 5.0
DAY_US: Final = 86_400_000_000
LOOPS_MIN: Final = 1.0
LIMITS: Final = {"techniques that try in a loop": LOOPS_MIN}
Row = dict[str, Any]


def main(argv: list[str]) -> int:
    """Print the table; returns 1 when a limit is missed, 2 without data."""
    if data() is None:
        print("detect_denials: the shared data folder is not here", file=sys.stderr)
        return 2
    return show(measure(argv))


def measure(options: list[str]) -> list[Figure]:
    """The figures of all logs. There are no options."""
    source = data()
    if source is None:
        return []
    web = [row(r, 0) | {"denied": int(r.status in REFUSED)} for r in weblogs.requests(source)]
    cloud = list(cloudtrail(source))
    days = {agent: len({one["time"] // DAY_US for one in web if one["agent"] == agent}) for agent in {r["agent"] for r in web}}
    figures = []
    refused, total = sum(r["denied"] for r in web), sum(days.values())
    others = len({r["agent"] for r in cloud}) - len(LOOPS)
    for name, find in (("the detector", bursts), ("CUSUM", cusum)):
        found, tried = find(web), find(cloud)
        counts: dict[str, Counts] = {agent: (float(found.get(agent, 0)), float(of)) for agent, of in days.items()}
        loops = {one: (float(any(one in agent for agent in tried)), 1.0) for one in LOOPS}
        besides = sum(not any(one in agent for one in LOOPS) for agent in tried)
        least = LOOPS_MIN if find is bursts else None
        figures += [
            share("deny-burst", "web logs", f"false in 1,000 agent-days, {name}", counts, times=1000.0,
                  note=f"{refused} refusals in {total} agent-days"),
            share("deny-burst", "cloudtrail", f"techniques that try in a loop, {name}", loops, least=least,
                  note=f"besides: {besides} of {others} principals"),
        ]  # fmt: skip
    return figures


def cloudtrail(source: Path) -> list[Row]:
    """The account's events in the order of time, as rows of aggregates."""
    rows: list[Row] = []
    with tarfile.open(source / "cloudtrail" / "invictus.tar.gz") as tar:
        for member in tar:
            if not member.name.endswith(".json"):
                continue
            file = tar.extractfile(member)
            assert file is not None
            for event in json.load(file)["Records"]:
                agent = event["userIdentity"].get("arn") or event["userIdentity"].get("invokedBy", "unknown")
                time = round(datetime.fromisoformat(event["eventTime"]).timestamp() * 1e6)
                service, name = event["eventSource"].partition(".")[0], event["eventName"]
                rows.append({
                    "lane_host": "benchmark", "lane_boot": 1, "lane_partition": 0, "frame_no": 1, "agent": agent,
                    "host": event["eventSource"], "domain": "amazonaws.com", "action": f'Action::"aws:{name}"',
                    "resource": f'Tool::"{service}/{name}"', "task": "", "second": time // 1_000_000, "query_hash": 0,
                    "query_bits": 0, "calls": 1, "denied": int(event.get("errorCode") in DENIED), "bytes_out": 0,
                    "bytes_in": 0, "time": time, "call_boot": 1, "call_seq": len(rows),
                })  # fmt: skip
    return rows


def bursts(rows: list[Row]) -> dict[str, int]:
    """Findings of the shipped detector that stand at the end, by agent."""
    detector = DenyBursts()
    standing = {}
    ordered = sorted(rows, key=lambda one: one["time"])
    for start in range(0, len(ordered), FRAME_RECORDS_MAX):
        for finding in detector.take(pa.Table.from_pylist(ordered[start : start + FRAME_RECORDS_MAX], schema=AGENT_ROWS)):
            standing[finding.id] = finding
    found: dict[str, int] = defaultdict(int)
    for finding in standing.values():
        found[finding.agent] += not finding.withdrawn
    return {agent: count for agent, count in found.items() if count}


def cusum(rows: list[Row]) -> dict[str, int]:
    """Times that a sum of what is above the rate rises over 5 sigma, by agent: the same windows, the same rate."""
    found: dict[str, int] = defaultdict(int)
    counts: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for one in rows:
        counts[one["agent"]][one["time"] // WINDOW_US] += one["denied"]
    for agent, windows in counts.items():
        total = past = 0
        drift = 0.0
        for _, denied in sorted(windows.items()):
            rate = rate_of(past, total) if total else RATE_MIN
            drift = max(0.0, drift + denied - rate)
            if drift >= CUSUM_SIGMAS * math.sqrt(rate):
                found[agent] += 1
                drift = 0.0
            past, total = past + denied, total + 1
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
