"""Plain requests, tunnels and long answers through Wardline and through the peers, in turns, and what each costs.

A processor's time is compared, not requests a second: it is steady on a machine that others use too. Every round runs each arm
once, a ratio is that of one round, and the median of the rounds is held to its limit; the share of the record is taken of pairs
of its own. Ours is that of door and host together, until all that the round recorded is signed, sent and stored. Broker and
control run beside the two ends; worker and store, which would take half of their processor, wait until a round is over.

The plain requests are equal, as those of the published figures are; a door keeps what the last head of a connection meant, so
equal ones are its best case. `paths` is its worst: every request goes to a path that nobody has asked for before.
"""

import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.egress.arms import DIRECT, NULL, OURS, Arm, Figures, direct, ours, peers
from benchmarks.egress.nulldoor import null_door
from benchmarks.egress.site import Site
from benchmarks.wire.tools import free_port, have_compiler, origin

ROUNDS: Final = 3
PAIRS: Final = 8
"""Of a door with a record and one without, one right behind the other: what lies between them is little."""

SECONDS: Final = 1.5
ALONE_S: Final = 0.7
CONNECTIONS: Final = 32
BULK_BYTES: Final = 32_000_000
BULK_CONNECTIONS: Final = 4

COST_MIN: Final = {"mitmproxy": 30.0, "squid": 2.5, "envoy": 1.5, "haproxy": 0.5}
"""What a plain request costs there, as a multiple of ours."""

ADDED_MS_MAX: Final = 0.25
SHARE_MAX: Final = 0.10
TUNNELS_MIN: Final = {"envoy": 1.0, "mitmproxy": 15.0}
"""Our tunnels a second, as a multiple of theirs."""

BULK_MAX: Final = 1.2
"""What a megabyte costs through ours, as a multiple of Envoy."""


def measure(options: dict[str, str]) -> bool:
    """Measure and print; returns whether every limit holds."""
    if not have_compiler():
        print("no C compiler here, which the two ends of the wire need")
        return True
    rounds = int(options.get("rounds") or ROUNDS)
    wanted = options["peers"].split(",") if options.get("peers") else []
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="wardline-egress-") as name:
        folder = Path(name)
        with (
            origin(port), peers(folder / "peers", port, wanted) as others, Site(folder / "home", [port]) as site,
            null_door(site, port) as null,
        ):  # fmt: skip
            own = ours(site, port)
            null.idle = own.idle  # its host has no record to carry, but tells it what is revoked all the same
            arms = [direct(port), *others, own, null]
            for turn in range(rounds):
                _round(arms if turn % 2 == 0 else arms[::-1])
            for turn in range(PAIRS):
                for arm in (own, null) if turn % 2 == 0 else (null, own):
                    arm.run("record", SECONDS, connections=CONNECTIONS)
            return _report(arms)


def _round(arms: list[Arm]) -> None:
    for arm in arms:
        arm.run("plain", SECONDS, connections=CONNECTIONS)
        arm.run("paths", SECONDS, connections=CONNECTIONS, ids=1)
        arm.run("alone", ALONE_S, connections=1)
    for arm in arms:
        if arm.connects:
            arm.run("tunnels", SECONDS, connections=CONNECTIONS, mode="connect")
            arm.run("bulk", SECONDS, connections=BULK_CONNECTIONS, mode="connect", bulk=BULK_BYTES)


def _report(arms: list[Arm]) -> bool:
    known = {arm.name: arm for arm in arms}
    print(f"policy and record on in every arm; load {os.getloadavg()[0]:.1f} with all that ran beside")
    print("plain POST, 32 connections   req/s  CPU us  (spread)           host's  p50 ms  p99 ms  alone p50 ms"
          "   MB  failed   CPU us with new paths")
    for arm in arms:
        plain, alone = arm.found["plain"], arm.found["alone"]
        costs = [one.cost_us for one in plain]
        spread = f"({min(costs):,.1f} to {max(costs):,.1f})"
        print(f"  {arm.name:<22} {_mid(plain, _rate):>9,.0f} {statistics.median(costs):>7,.1f}  {spread:<18} "
              f"{_mid(plain, _host):>5.1f}  {_mid(plain, _p50) / 1000:>7.2f} {_mid(plain, _p99) / 1000:>7.2f}"
              f"  {_mid(alone, _p50) / 1000:>12.3f}  {arm.resident:>3,.0f}  {_bad(plain + alone):>6}"
              f"  {_mid(arm.found['paths'], _cost):>8,.1f}")  # fmt: skip
    print(f"our host uses {known[OURS].idle:.1%} of a processor when idle; each request bears what is its share at a full one")
    good = [_costs(known), _added(known), _share(known)]
    print("tunnel and one GET, 32 at once   per s   CPU us   host's   bulk MB/s   CPU ms/MB  failed")
    for arm in arms:
        if arm.connects:
            opened, bulk = arm.found["tunnels"], arm.found["bulk"]
            print(f"  {arm.name:<22} {_mid(opened, _rate):>12,.0f} {_mid(opened, _cost):>8,.0f} {_mid(opened, _host):>8,.0f}"
                  f"  {_mid(bulk, _speed):>10,.0f}  {_mid(bulk, _heavy):>10.3f}  {_bad(opened)}")  # fmt: skip
    good += [_tunnels(known), _bulk(known), _failed(known[OURS])]
    return all(good)


def _mid(rounds: list[Figures], what: Callable[[Figures], float]) -> float:
    return statistics.median(what(one) for one in rounds)


def _bad(rounds: list[Figures]) -> int:
    return sum(one.bad for one in rounds)


def _rate(one: Figures) -> float:
    return one.rate


def _cost(one: Figures) -> float:
    return one.cost_us


def _host(one: Figures) -> float:
    return one.later_us / one.turns


def _p50(one: Figures) -> float:
    return one.p50_us


def _p99(one: Figures) -> float:
    return one.p99_us


def _speed(one: Figures) -> float:
    return one.bytes / 1e6 / one.seconds


def _heavy(one: Figures) -> float:
    return one.cost_ms_mb


def _ratios(above: list[Figures], below: list[Figures], what: Callable[[Figures], float]) -> list[float]:
    return [what(one) / what(other) for one, other in zip(above, below, strict=True)]


def _say(text: str, ratios: list[float], limit: float, *, least: bool, digits: int = 2) -> bool:
    """Print a figure beside its limit, and whether it holds."""
    middle = statistics.median(ratios)
    holds = middle >= limit if least else middle <= limit
    word = "at least" if least else "at most"
    print(f"{'' if holds else 'MISSED: '}{text}  {middle:.{digits}f}  ({min(ratios):.{digits}f} to {max(ratios):.{digits}f})"
          f"  {word} {limit:g}")  # fmt: skip
    return holds


def _costs(known: dict[str, Arm]) -> bool:
    good = True
    for name, limit in COST_MIN.items():
        if name in known:
            ratios = _ratios(known[name].found["plain"], known[OURS].found["plain"], _cost)
            good = _say(f"CPU of a plain request: {name} / ours", ratios, limit, least=True) and good
            ratios = _ratios(known[name].found["paths"], known[OURS].found["paths"], _cost)
            print(f"  with a path that is new each time: {name} / ours  {statistics.median(ratios):.2f}  (no limit)")
    return good


def _added(known: dict[str, Arm]) -> bool:
    pairs = zip(known[OURS].found["alone"], known[DIRECT].found["alone"], strict=True)
    added = [(one.p50_us - other.p50_us) / 1000 for one, other in pairs]
    return _say("p50 added to a request on an idle connection, ms", added, ADDED_MS_MAX, least=False, digits=3)


def _share(known: dict[str, Arm]) -> bool:
    pairs = list(zip(known[OURS].found["record"], known[NULL].found["record"], strict=True))
    door = [1 - other.cost_us / (one.cost_us - one.later_us / one.turns) for one, other in pairs]
    print(f"the record's share of the door's own CPU  {statistics.median(door):.2f}")
    shares = [1 - other.cost_us / one.cost_us for one, other in pairs]
    return _say("the record's share of a plain request's CPU, door and host", shares, SHARE_MAX, least=False)


def _tunnels(known: dict[str, Arm]) -> bool:
    good = True
    for name, limit in TUNNELS_MIN.items():
        if name in known:
            ratios = _ratios(known[OURS].found["tunnels"], known[name].found["tunnels"], _rate)
            good = _say(f"tunnels a second: ours / {name}", ratios, limit, least=True) and good
    return good


def _bulk(known: dict[str, Arm]) -> bool:
    if "envoy" not in known:
        return True
    ratios = _ratios(known[OURS].found["bulk"], known["envoy"].found["bulk"], _heavy)
    return _say("CPU of a megabyte through a tunnel: ours / envoy", ratios, BULK_MAX, least=False)


def _failed(own: Arm) -> bool:
    bad = sum(_bad(rounds) for rounds in own.found.values())
    print(f"{'' if bad == 0 else 'MISSED: '}answers of ours other than 200, or none: {bad}  at most 0")
    return bad == 0
