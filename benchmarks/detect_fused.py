"""What does one risk per agent add? `python -m benchmarks.detect_fused`: all shipped detectors, and what `fuse` makes of them.

    web days    a benign capture and the day with beacons: agents that are called a risk, in 1,000 agent-days. There is nothing
                else in them than regular calls, which alone must never be a risk. `half learnt` is the same at half speed: its
                first 24 hours teach, the rest is judged by them
    tunnels     synthetic, and says so: each client of the web day in turn goes on as one run of DNSExfiltrator an hour after
                its day. Is it a risk, after how many names, and of how many points?

What an agent is used to is its web day; each run is asked by itself, of detectors that know that day and nothing of the others.
"""

import sys
from collections import defaultdict
from typing import Final

from benchmarks import weblogs
from benchmarks.detect_leak import at_half_speed
from benchmarks.detectdata import Told, data, hear, per_agent_day, tunnels, web
from benchmarks.figures import Counts, Figure, share, show
from pipeline.core.detect import detectors
from pipeline.core.detect.fuse import risks
from schemas.findings import Finding

DAY_US: Final = 86_400_000_000
HOUR_US: Final = 3_600_000_000
ACT_MIN: Final = 90.0
"""The score that a rule acts on when nothing else is said."""

RISKY_MIN: Final = 1.0
LIMITS: Final = {"tunnels that are a risk": RISKY_MIN}


def main(argv: list[str]) -> int:
    """Print the table; returns 1 when a limit is missed, 2 without data."""
    if data() is None:
        print("detect_fused: the shared data folder is not here", file=sys.stderr)
        return 2
    return show(measure(argv))


def measure(options: list[str]) -> list[Figure]:
    """The figures of both. There are no options."""
    source = data()
    if source is None:
        return []
    labelled = list(web(weblogs.rita(source)))
    figures = []
    benign = list(web(weblogs.benign(source)))
    for name, calls in (
        ("rita web day", labelled), ("rita, half learnt", at_half_speed(labelled)),
        ("aktaion benign", benign), ("benign, half learnt", at_half_speed(benign)),
    ):  # fmt: skip
        heard = hear(calls)
        found = risks_of(heard.standing())
        days = f"{sum(heard.agent_days.values())} agent-days, {len(heard.standing())} findings"
        figures.append(share("risk", name, "agents that are a risk, in 1,000 agent-days", per_agent_day(heard, found),
                             times=1000.0, note=days))  # fmt: skip
        acted = [one for one in found if one.score >= ACT_MIN]
        figures.append(share("risk", name, "of these such as a rule acts on", per_agent_day(heard, acted), times=1000.0))
    return figures + exfiltrated(labelled, tunnels(source))


def risks_of(findings: list[Finding]) -> list[Finding]:
    """The risks of all agents: of each agent what its findings amount to."""
    by_agent: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        by_agent[finding.agent].append(finding)
    return [one for agent in sorted(by_agent) if agent for one in risks(by_agent[agent])]


def exfiltrated(labelled: list[Told], runs: dict[str, list[Told]]) -> list[Figure]:
    """Each run as what one of the clients does the next day."""
    clients = sorted({call.agent for call in labelled})
    risky: dict[str, Counts] = {}
    acted: dict[str, Counts] = {}
    names: list[int] = []
    for number, (run, asked) in enumerate(sorted(runs.items())):
        client = clients[number % len(clients)]
        own = [call for call in labelled if call.agent == client]
        begins = max(call.time_us for call in own) + HOUR_US
        begins = max(begins, min(call.time_us for call in own) + DAY_US + HOUR_US)
        later = [call._replace(agent=client, time_us=begins + call.time_us - asked[0].time_us) for call in asked]
        ears = detectors()
        before = hear(own, ears)
        words = hear(later, ears, per_frame=1).words
        last = {finding.id: finding for _, finding in before.words}
        after = 0
        for count, finding in words:
            last[finding.id] = finding
            if not after and risks_of(list(last.values())):
                after = count
        found = risks_of(list(last.values()))
        risky[run] = float(bool(found)), 1.0
        acted[run] = float(any(one.score >= ACT_MIN for one in found)), 1.0
        names += [after] if after else []
    note = f"median {sorted(names)[len(names) // 2]} names, at most {max(names)}" if names else ""
    return [
        share("risk", "tunnels, synthetic", "tunnels that are a risk", risky, least=RISKY_MIN, note=note),
        share("risk", "tunnels, synthetic", "of all such as a rule acts on", acted, note=f"{len(runs)} runs"),
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
