"""Are tunnels by names found within ten of them, and no pair of a benign web day? `python -m benchmarks.detect_leak`.

    tunnels     54 runs of DNSExfiltrator, each an agent of its own; names as a door sees them, in lower case
    web days    RITA's day and the benign capture: every finding is false. In the first 24 hours of an agent queries that are
                let out only teach, so that these days ask of names alone. `half learnt` asks the same of the day at half speed,
                so that its first half teaches; `known` asks agents that are known for a day and have called nothing in it: the
                worst case. Neither has a limit
    drip        synthetic, and says so: a name of 16 hex digits every four hours for 30 days, never near a mark

Beside the meter stands the field's rule: a name that is longer than mean + 2 standard deviations of the web day's names.
"""

import hashlib
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Final

from benchmarks import weblogs
from benchmarks.detectdata import DAY_US, TUNNELS_START_US, Told, data, hear, per_agent_day, tunnels, web
from benchmarks.figures import Figure, share, show
from benchmarks.plots import Series, chart
from enforcers.core.call import target_of
from ext.meter import name_bits
from pipeline.core.detect.leak import Leaks
from schemas.vocabulary import host_uid

NAMES_MAX: Final = 10
LIMITS: Final = {"tunnels found": 1.0, "tunnels found within 10 names": 1.0, "false pairs": 0.0}
DRIP_HOURS: Final = 4
MARKS: Final = (64, 128, 256, 512, 1024, 2048, 4096)


def main(argv: list[str]) -> int:
    """Print the table; returns 1 when a limit is missed, 2 without data."""
    if data() is None:
        print("detect_leak: the shared data folder is not here", file=sys.stderr)
        return 2
    return show(measure(argv))


def measure(options: list[str]) -> list[Figure]:
    """The figures of tunnels, web days and the drip. There are no options."""
    source = data()
    if source is None:
        return []
    runs, day = tunnels(source), list(web(weblogs.rita(source)))
    figures = found_in(runs)
    for name, calls in (("rita web day", day), ("aktaion benign", list(web(weblogs.benign(source))))):
        heard = hear(calls, [Leaks()])
        held = {"most": 0.0} if name == "rita web day" else {}
        figures.append(Figure(detector="leak", data=name, what="false pairs", value=float(len(heard.standing())), **held,
                              note=f"of {pairs(calls)} pairs"))  # fmt: skip
        figures.append(share("leak", name, "false findings in 1,000 agent-days", per_agent_day(heard, heard.standing()),
                             times=1000.0, note=f"{sum(heard.agent_days.values())} agent-days"))  # fmt: skip
        for what, told in (("half learnt", at_half_speed(calls)), ("known", known(calls))):
            heard = hear(told, [Leaks()])
            figures.append(share("leak", name, f"the same, {what}", per_agent_day(heard, heard.standing()), times=1000.0,
                                 note="scores " + scores(heard.standing())))  # fmt: skip
    return [*figures, *by_length(runs, day), *drip(), *by_mark(runs, day)]


def scores(findings: Sequence[object]) -> str:
    """How many of each score."""
    counts = Counter(getattr(one, "score", 0.0) for one in findings)
    return ", ".join(f"{score:g} x {count}" for score, count in sorted(counts.items())) or "none"


def found_in(runs: dict[str, list[Told]]) -> list[Figure]:
    """Of all runs: found, within ten names, and how many names and bits it took."""
    heard = hear([call for calls in runs.values() for call in calls], [Leaks()])
    first = {finding.agent: finding for _, finding in reversed(heard.words)}
    names, bits = {}, []
    for name, calls in runs.items():
        finding = first.get(f"tunnel-{name}")
        if finding is not None:
            names[name] = sum(call.time_us <= finding.time_us for call in calls)
            hosts = list(dict.fromkeys(target_of(call.resource).host for call in calls[: names[name]]))
            bits.append(sum(name_bits(sub_name(host)) for host in hosts))
    clusters = {name: (float(name in names), 1.0) for name in runs}
    soon = {name: (float(names.get(name, NAMES_MAX + 1) <= NAMES_MAX), 1.0) for name in runs}
    return [
        share("leak", "covert-dns", "tunnels found", clusters, least=1.0, note=f"{len(runs)} runs"),
        share("leak", "covert-dns", "tunnels found within 10 names", soon, least=1.0),
        *(
            Figure(detector="leak", data="covert-dns", what=f"{what} until it is found, {which}", value=float(of(values)))
            for what, values in (("names", list(names.values())), ("bits", bits))
            for which, of in (("median", statistics.median), ("most", max))
        ),
    ]


def sub_name(host: str) -> str:
    """What a name has before its registrable domain, without dots; empty where there is none."""
    domain = target_of(host_uid(host, 443)).domain
    return host.removesuffix(f".{domain}").replace(".", "") if domain and host != domain else ""


def pairs(calls: Sequence[Told]) -> int:
    """Agents and where they went."""
    return len({(call.agent, target_of(call.resource).domain or target_of(call.resource).host) for call in calls})


def known(calls: Sequence[Told]) -> list[Told]:
    """The calls, and a day and an hour before them one of each agent to a place that is nowhere else."""
    start = min(call.time_us for call in calls) - DAY_US - DAY_US // 24
    place = host_uid("known.invalid", 443)
    return [*(Told(start, agent, "http:GET", place) for agent in sorted({call.agent for call in calls})), *calls]


def at_half_speed(calls: Sequence[Told]) -> list[Told]:
    """The calls with twice the time between them."""
    start = min(call.time_us for call in calls)
    return [call._replace(time_us=start + 2 * (call.time_us - start)) for call in calls]


def by_length(runs: dict[str, list[Told]], day: Sequence[Told]) -> list[Figure]:
    """The field's rule on the same names."""
    benign = {(call.agent, target_of(call.resource).domain, target_of(call.resource).host) for call in day}
    lengths = {one: len(sub_name(one[2])) for one in benign if one[1]}
    most = statistics.mean(lengths.values()) + 2 * statistics.pstdev(lengths.values())
    flagged = {one[:2] for one, size in lengths.items() if size > most}
    found = {n: (float(any(len(sub_name(target_of(c.resource).host)) > most for c in calls)), 1.0) for n, calls in runs.items()}
    return [
        share("leak", "covert-dns", "tunnels found, by length alone", found, note=f"longer than {most:.1f} characters"),
        Figure(detector="leak", data="rita web day", what="false pairs, by length alone", value=float(len(flagged))),
    ]


def drip() -> list[Figure]:
    """What is said of a drip, and what the meter's total shows."""
    detector = Leaks()
    names = [hashlib.sha256(b"%d" % n).hexdigest()[:16] for n in range(30 * 24)]
    calls = [Told(TUNNELS_START_US + n * DAY_US // 24, "drip", "http:GET", host_uid(f"{name}.drip-example.org", 443))
             for n, name in enumerate(names)]  # fmt: skip
    slow = hear(calls[::DRIP_HOURS], [detector])
    ((_, _, total),) = detector.totals(1)
    found = min((one for _, one in slow.words), key=lambda one: one.time_us)
    told = sum(name_bits(name) for name in names[::DRIP_HOURS])
    days = (found.time_us - TUNNELS_START_US) / DAY_US
    return [
        Figure(detector="leak", data="drip (synthetic)", what="share of its bits in the meter's total", value=total / told,
               least=0.999, most=1.001, note=f"{told:,.0f} bits in 30 days"),
        Figure(detector="leak", data="drip (synthetic)", what="days until it is said", value=days,
               note=f"score {found.score:g}, {found.terms[0].name}"),
    ]  # fmt: skip


def by_mark(runs: dict[str, list[Told]], day: Sequence[Told]) -> list[Figure]:
    """Tunnels found and benign pairs flagged at other marks than the shipped one; the plot of it."""
    sums: dict[tuple[str, str], float] = {}
    for agent, host in {(call.agent, target_of(call.resource).host) for call in day}:
        domain = target_of(host_uid(host, 443)).domain
        if domain:
            sums[agent, domain] = sums.get((agent, domain), 0.0) + name_bits(sub_name(host))
    late = {mark: [names_to(calls, mark) for calls in runs.values()] for mark in MARKS}
    most = {mark: float(max(found)) for mark, found in late.items()}
    flagged = {mark: float(sum(bits >= mark for bits in sums.values())) for mark in MARKS}
    chart(
        "leak-marks", "Leak meter: names until the slowest tunnel is found, benign pairs flagged, by mark", "bits", "count",
        [Series("names until the slowest tunnel is found", [(float(mark), most[mark]) for mark in MARKS]),
         Series(f"benign pairs flagged, of {len(sums)}", [(float(mark), flagged[mark]) for mark in MARKS])], log_x=True,
    )  # fmt: skip
    return [
        Figure(detector="leak", data="covert-dns, rita", what=f"benign pairs flagged if the mark were {mark}",
               value=flagged[mark], note=f"slowest tunnel: {most[mark]:g} names")
        for mark in MARKS
    ]  # fmt: skip


def names_to(calls: Sequence[Told], mark: float) -> int:
    """Names until a sum passes a mark, two at least; one more than all where it does not."""
    seen: set[str] = set()
    total = 0.0
    for number, call in enumerate(calls, 1):
        name = sub_name(target_of(call.resource).host)
        if name not in seen:
            seen.add(name)
            total += name_bits(name)
        if total >= mark and len(seen) > 1:
            return number
    return len(calls) + 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
