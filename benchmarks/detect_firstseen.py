"""How often is a domain new, and are exploit kits among them? `python -m benchmarks.detect_firstseen`.

    web days    RITA's day and the benign capture, at half speed: what an agent does in its first 24 hours teaches, which is the
                first half of the log. Nothing in them is known to be bad, so every finding is counted as false
    exploits    visits to exploit kits by some clients over six months: of each visit that begins a day or more after the
                client's first, is there a finding among its calls? Every domain of a visit is new there, the kit's and others:
                this asks whether it is seen, not whether it is told from the rest

There is no limit: a new domain is a weak sign, and weighs with others.
"""

import sys
from collections import defaultdict
from typing import Final

from benchmarks import weblogs
from benchmarks.detect_leak import at_half_speed, pairs, scores
from benchmarks.detectdata import DAY_US, data, hear, per_agent_day, web
from benchmarks.figures import Figure, share, show
from pipeline.core.detect.firstseen import FirstSeen

LIMITS: Final[dict[str, float]] = {}


def main(argv: list[str]) -> int:
    """Print the table; returns 2 without data."""
    if data() is None:
        print("detect_firstseen: the shared data folder is not here", file=sys.stderr)
        return 2
    return show(measure(argv))


def measure(options: list[str]) -> list[Figure]:
    """The figures of web days and visits. There are no options."""
    source = data()
    if source is None:
        return []
    figures = []
    for name, load in (("rita web day", weblogs.rita), ("aktaion benign", weblogs.benign)):
        calls = at_half_speed(list(web(load(source))))
        found = (heard := hear(calls, [FirstSeen()])).standing()
        note = f"{len(found)} findings, scores {scores(found)}" if len(found) < 10 else f"{len(found)} findings"
        figures += [
            share("first-seen", name, "false findings in 1,000 agent-days", per_agent_day(heard, found), times=1000.0,
                  note=note),
            Figure(detector="first-seen", data=name, what="findings in 100 pairs of agent and domain",
                   value=100 * len(found) / pairs(calls)),
            Figure(detector="first-seen", data=name, what="findings of high severity",
                   value=float(sum(f.score >= 70 for f in found))),
        ]  # fmt: skip
    visits = list(web(weblogs.exploits(source)))
    begun: dict[tuple[str, str], int] = {}
    first: dict[str, int] = {}
    for call in visits:
        key = (call.agent, call.session)
        begun[key] = min(begun.get(key, call.time_us), call.time_us)
        first[call.agent] = min(first.get(call.agent, call.time_us), call.time_us)
    asked = {key for key, at in begun.items() if at >= first[key[0]] + DAY_US}
    seen = {(finding.agent, finding.time_us) for finding in hear(visits, [FirstSeen()]).standing()}
    caught = {(call.agent, call.session) for call in visits if (call.agent, call.time_us) in seen}
    counts: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for key in asked:
        counts[key[0]] = (counts[key[0]][0] + (key in caught), counts[key[0]][1] + 1)
    figures.append(share("first-seen", "aktaion exploits", "visits with a finding", counts, note=f"{len(asked)} visits"))
    return figures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
