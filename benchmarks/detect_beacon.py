"""Are the scripted beacons of a labelled web day found, and nothing else? `python -m benchmarks.detect_beacon`.

The day of RITA's `valid_tsv`: a script asks www.alexa.com every five minutes on ten of thirteen machines; what else is as
regular is updates, tiles and certificate lists. Every request goes to the shipped detector with its defaults, frame by frame in
the order of time. Beside it stands RITA's score alone, over the same days, and the web logs that have no beacon.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final

import pyarrow as pa

from benchmarks import weblogs
from benchmarks.detectdata import data
from benchmarks.figures import Counts, Figure, share, show
from pipeline.core.detect.beacon import Beacons
from schemas.egress import AGENT_ROWS
from schemas.findings import Finding
from schemas.limits import FRAME_RECORDS_MAX
from schemas.vocabulary import registrable_domain

BEACON_HOST: Final = "www.alexa.com"
RECALL_MIN: Final = 1.0
PRECISION_MIN: Final = 0.9
LIMITS: Final = {"recall": RECALL_MIN, "precision": PRECISION_MIN}
RITA_MARKS: Final = (0.8, 0.9)
DAY_S: Final = 86_400


def main(argv: list[str]) -> int:
    """Print the table; returns 1 when a limit is missed, 2 without data."""
    source = data()
    if source is None:
        print("detect_beacon: the shared data folder is not here", file=sys.stderr)
        return 2
    return show(measure(argv))


def measure(options: list[str]) -> list[Figure]:
    """The figures of every web log. There are no options."""
    source = data()
    if source is None:
        return []
    labelled = list(weblogs.rita(source))
    found, rita = run(labelled)
    hosts = {f"{request.log}-{request.client}": request for request in labelled if request.host == BEACON_HOST}
    truth = {(agent, BEACON_HOST) for agent in hosts}
    figures = score("the detector", truth, {(f.agent, f.host) for f in found}, held=True)
    for mark in RITA_MARKS:
        figures += score(f"RITA alone, {mark}", truth, {pair for pair, value in rita.items() if value >= mark}, held=False)
    figures += delays(labelled, found)
    for name, load in (("aktaion benign", weblogs.benign), ("aktaion exploits", weblogs.exploits)):
        requests = list(load(source))
        figures.append(false(name, requests, run(requests)[0]))
    figures.append(false("rita web day", labelled, [f for f in found if (f.agent, f.host) not in truth]))
    return figures


def run(requests: Iterable[weblogs.Request]) -> tuple[list[Finding], dict[tuple[str, str], float]]:
    """What stands at the end, and RITA's score of every pair, the highest of its days."""
    detector = Beacons()
    standing: dict[str, Finding] = {}
    for table in frames(sorted(requests, key=lambda request: request.time)):
        for finding in detector.take(table):
            standing[finding.id] = finding
    scores: dict[tuple[str, str], float] = {}
    for pair, state in detector._pairs.items():
        judged = [day.judge(2) for day in state.days.values()]
        scores[pair] = max((one[0] for one in judged if one is not None), default=0.0)
    return [finding for finding in standing.values() if not finding.withdrawn], scores


def frames(requests: list[weblogs.Request]) -> Iterator[pa.Table]:
    """Requests as rows of aggregates, as many in a table as a frame has."""
    for start in range(0, len(requests), FRAME_RECORDS_MAX):
        yield pa.Table.from_pylist([row(r, start) for r in requests[start : start + FRAME_RECORDS_MAX]], schema=AGENT_ROWS)


def row(request: weblogs.Request, frame_no: int) -> dict[str, object]:
    """One request: as a door would have summed it up."""
    resource = weblogs.resource_of(request)
    host = resource.partition('"')[2].rpartition(":")[0]
    return {
        "lane_host": "benchmark", "lane_boot": 1, "lane_partition": 0, "frame_no": frame_no + 1,
        "agent": f"{request.log}-{request.client}", "host": host, "domain": registrable_domain(host),
        "action": f'Action::"http:{request.method}"', "resource": resource, "task": request.session,
        "second": int(request.time), "query_hash": 0, "query_bits": 0, "calls": 1, "denied": 0, "bytes_out": request.sent,
        "bytes_in": request.received, "time": round(request.time * 1e6), "call_boot": 1, "call_seq": frame_no + 1,
    }  # fmt: skip


def score(name: str, truth: set[tuple[str, str]], found: set[tuple[str, str]], held: bool) -> list[Figure]:
    """Recall and precision of pairs; what is drawn again is agents."""
    recall: dict[str, Counts] = defaultdict(lambda: (0.0, 0.0))
    precision: dict[str, Counts] = defaultdict(lambda: (0.0, 0.0))
    for pair in truth:
        recall[pair[0]] = (recall[pair[0]][0] + (pair in found), recall[pair[0]][1] + 1)
    for pair in found:
        precision[pair[0]] = (precision[pair[0]][0] + (pair in truth), precision[pair[0]][1] + 1)
    least = (RECALL_MIN, PRECISION_MIN) if held else (None, None)
    return [
        share("beacon", "rita web day", f"recall, {name}", recall, least=least[0], note=f"{len(truth)} beacons"),
        share("beacon", "rita web day", f"precision, {name}", precision, least=least[1], note=f"{len(found)} found"),
    ]


def delays(requests: list[weblogs.Request], found: list[Finding]) -> list[Figure]:
    """How long a beacon spoke, and how often, until the detector said so: from its first call of that day."""
    hours, calls = [], []
    for finding in found:
        times = [r.time for r in requests if f"{r.log}-{r.client}" == finding.agent and r.host == finding.host]
        times = [time for time in times if finding.window_us <= time * 1e6 <= finding.time_us + 1e6]
        hours.append((finding.time_us - finding.started_us) / 3.6e9)
        calls.append(len(times))
    if not found:
        return []
    middle = len(found) // 2
    until = "of its day until it is found, median"
    return [
        Figure(detector="beacon", data="rita web day", what=f"{what} {until}", value=sorted(v)[middle])
        for what, v in (("hours", hours), ("calls", calls))
    ]


def false(name: str, requests: list[weblogs.Request], found: list[Finding]) -> Figure:
    """False findings per 1,000 agent-days."""
    days: dict[str, set[int]] = defaultdict(set)
    for request in requests:
        days[f"{request.log}-{request.client}"].add(int(request.time) // DAY_S)
    counts = {agent: (float(sum(f.agent == agent for f in found)), float(len(these))) for agent, these in days.items()}
    total = sum(len(these) for these in days.values())
    return share("beacon", name, "false findings in 1,000 agent-days", counts, times=1000.0, note=f"{total} agent-days")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
