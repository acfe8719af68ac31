"""What does a decision cost? A cached one beside `dict.get((a, b, c))` on the same keys, a miss, and Cedar's own engine.

Both loops are plain Python loops over the same 1,000 questions and alternate; the ratio is taken within each turn, so that a
busy neighbour meets both. `same texts` asks with the very objects that were asked before, `3 links` the same with a chain of
three, whose tuple is part of the dict's key. `new texts` asks with equal texts that nobody has hashed yet, as they come off a
wire; most of that is memory and hashing, so it has no limit. A miss is asked of a matcher that has not seen the question; its
names are new too, or the vocabulary knows them (`known names`). Policies grow, and what applies to a question stays as it is:
one policy. Times are of the processor, not of the clock on the wall: a loop that was put aside has not become slower.
"""

import json
import statistics
import time
from typing import Any, Final

import cedarpy

from ext.decide import Matcher
from schemas.bundle import Bundle, Constraint, Rule
from schemas.vocabulary import action_uid, agent_uid, entity_uid, implied_parents, parse_uid, tool_uid

RATIO_MAX: Final = 1.5
"""A cached decision costs at most this many times `dict.get`."""

FLAT_MAX: Final = 1.5
"""The ratio with most policies, divided by the ratio with fewest: a cached decision does not see the policies. What a matcher
that looks at each of them would show here is 100."""

MISS_FLAT_MAX: Final = 3.0
"""The same for the cost of a miss."""

SIZES: Final = (10, 100, 1_000)
QUESTIONS: Final = 1_000
TURNS: Final = 41
PART: Final = 100
"""Questions in one go of a loop: the two loops alternate by parts, so that what empties the caches meets both."""

ROUNDS: Final = 8
"""Times that a loop goes over its part, where the texts are the same."""

AGENTS: Final = 40
GROUPS: Final = 8
SERVERS: Final = 20
TOOLS: Final = 25
ACTION: Final = action_uid("mcp:tools/call")

Question = tuple[Any, str, str]


def agent(number: int) -> str:
    return agent_uid(f"agent-{number}")


def group(number: int) -> str:
    return entity_uid("AgentGroup", f"group-{number}")


def tool(number: int, more: str = "") -> str:
    return tool_uid(f"server-{number % SERVERS}", f"tool-{number % (SERVERS * TOOLS) // SERVERS}{more}")


def bundle(size: int) -> Bundle:
    """`size` policies: a permit for all who are asked, then exact ones, groups on servers, types in groups and forbids."""
    call: Constraint = ("==", ACTION)
    rules = [Rule(id="everybody", forbid=False, principal=("in", entity_uid("AgentGroup", "all")), action=call)]
    for number in range(1, size):
        one = agent(number % AGENTS) if number < AGENTS else agent(number)
        kind = number % 5
        who: Constraint = ("==", one) if kind < 3 else ("in", group(number)) if kind == 3 else ("is in", "Agent", group(number))
        on: Constraint = ("==", tool(number, f"-{number}")) if kind != 2 else ("in", entity_uid("McpServer", f"other-{number}"))
        rules.append(Rule(id=f"policy-{number}", forbid=kind == 4, principal=who, action=call, resource=on))
    parents: dict[str, tuple[str, ...]] = {
        agent(number): (entity_uid("AgentGroup", f"group-{number % GROUPS}"),) for number in range(AGENTS)
    }
    parents |= {group(number): (entity_uid("AgentGroup", "all"),) for number in range(GROUPS)}
    return Bundle(rules=tuple(rules), parents=parents)


def questions(links: int, more: str = "") -> list[Question]:
    """The same for every size: (principals, action, resource)."""
    return [
        (tuple(agent((number + step) % AGENTS) for step in range(links)), ACTION, tool(number * 7, f"{more}-{number}"))
        for number in range(QUESTIONS)
    ]


def keys(asked: list[Question]) -> list[Question]:
    """What a dict is asked for: the agent's own text where there is one link."""
    return [(who[0] if len(who) == 1 else who, action, resource) for who, action, resource in asked]


def loop_decide(matcher: Matcher, asked: list[Question], rounds: int) -> float:
    """Nanoseconds for each decision."""
    decide = matcher.decide
    begun = time.thread_time_ns()
    for _ in range(rounds):
        for who, action, resource in asked:
            decide(who, action, resource)
    return (time.thread_time_ns() - begun) / (rounds * len(asked))


def loop_dict(table: dict[Question, object], asked: list[Question], rounds: int) -> float:
    """Nanoseconds for each look-up."""
    get = table.get
    begun = time.thread_time_ns()
    for _ in range(rounds):
        for a, b, c in asked:
            get((a, b, c))
    return (time.thread_time_ns() - begun) / (rounds * len(asked))


def copied(asked: list[Question]) -> list[Question]:
    """Equal texts that are other objects and have no hash yet."""
    def text(one: str) -> str:
        return one.encode().decode()

    return [
        (tuple(map(text, who)) if isinstance(who, tuple) else text(who), text(action), text(resource))
        for who, action, resource in asked
    ]


def cached(matcher: Matcher, links: int, fresh: bool) -> tuple[list[float], list[float]]:
    """Nanoseconds of both loops, one pair for each turn."""
    asked = questions(links)
    table: dict[Question, object] = {key: matcher.decide(*one) for key, one in zip(keys(asked), asked, strict=True)}
    misses = matcher.misses
    rounds = 1 if fresh else ROUNDS
    ours, theirs = [], []
    for _ in range(TURNS):
        sums = [0.0, 0.0]
        for number, begins in enumerate(range(0, QUESTIONS, PART)):
            part = asked[begins : begins + PART]
            for which in (0, 1) if number % 2 else (1, 0):
                now = copied(part) if fresh else part
                if which == 0:
                    sums[0] += loop_decide(matcher, now, rounds)
                else:
                    sums[1] += loop_dict(table, keys(now), rounds)
        ours.append(sums[0] * PART / QUESTIONS)
        theirs.append(sums[1] * PART / QUESTIONS)
    assert matcher.misses == misses, "a question was not in the cache"
    return ours, theirs


def missed(encoded: bytes, known_names: bool) -> list[float]:
    """Nanoseconds for each miss, one figure for each turn."""
    took = []
    for turn in range(TURNS):
        matcher = Matcher(encoded)
        asked = questions(1, "" if known_names else f"-{turn}")
        if known_names:
            for _, action, resource in asked:
                implied_parents(action), implied_parents(resource)
        took.append(loop_decide(matcher, asked, 1))
        assert matcher.misses == QUESTIONS
    return took


def cedar(known: Bundle) -> list[float]:
    """Nanoseconds for each decision by cedarpy, policies and entities prepared."""
    def uid(text: str) -> dict[str, str]:
        kind, name = parse_uid(text)
        return {"type": kind, "id": name}

    def test(name: str, constraint: Constraint) -> str:
        match constraint:
            case ("any",):
                return name
            case (("==" | "in" | "is") as operator, what):
                return f"{name} {operator} {what}"
            case ("is in", kind, what):
                return f"{name} is {kind} in {what}"
        raise AssertionError(constraint)

    text = "\n".join(
        f"{'forbid' if rule.forbid else 'permit'}"
        f"({test('principal', rule.principal)}, {test('action', rule.action)}, {test('resource', rule.resource)});"
        for rule in known.rules
    )
    asked = questions(1)[: QUESTIONS // 20]
    resources = {resource: implied_parents(resource) for _, _, resource in asked}
    parents = known.parents | resources | {ACTION: implied_parents(ACTION)}
    entities = cedarpy.Entities.from_json_str(
        json.dumps([{"uid": uid(one), "attrs": {}, "parents": [uid(up) for up in above]} for one, above in parents.items()])
    )
    policies = cedarpy.PolicySet.from_str(text)
    requests = [
        {"principal": uid(who[0]), "action": uid(action), "resource": uid(resource), "context": {}}
        for who, action, resource in asked
    ]  # fmt: skip
    matcher = Matcher(known.encode())
    took = []
    for _ in range(5):
        begun = time.thread_time_ns()
        answers = [cedarpy.is_authorized(request, policies, entities) for request in requests]
        took.append((time.thread_time_ns() - begun) / len(requests))
    for one, answer in zip(asked, answers, strict=True):
        assert answer.allowed == bool(matcher.decide(*one).verdict), "cedarpy decides otherwise"
    return took


def spread(figures: list[float], digits: int = 0) -> str:
    """The median and the middle half."""
    low, _, high = statistics.quantiles(figures, n=4)
    return f"{statistics.median(figures):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main(argv: list[str]) -> int:
    """Run it; 1 when a limit is missed, 2 for an argument, since it takes none."""
    if argv:
        print(f"benchmarks.decide takes no `{argv[0]}`")
        return 2
    sound = True
    ratios: dict[str, list[float]] = {}
    misses: dict[str, list[float]] = {}
    for size in SIZES:
        known = bundle(size)
        encoded = known.encode()
        matcher = Matcher(encoded)
        for label, links, fresh in (("same texts", 1, False), ("new texts", 1, True), ("3 links", 3, False)):
            ours, theirs = cached(matcher, links, fresh)
            per_turn = [a / b for a, b in zip(ours, theirs, strict=True)]
            ratio = statistics.median(per_turn)
            said = "no limit" if fresh else f"limit {RATIO_MAX}"
            print(f"{size:>6} policies  cached, {label:<12} {spread(ours)} ns, dict.get {spread(theirs)} ns, "
                  f"ratio {spread(per_turn, 2)}, {said}")  # fmt: skip
            if not fresh:
                ratios.setdefault(label, []).append(ratio)
                sound &= ratio <= RATIO_MAX
        for label, known_names in (("known names", True), ("new names", False)):
            took = missed(encoded, known_names)
            misses.setdefault(label, []).append(statistics.median(took))
            print(f"{size:>6} policies  miss, {label:<14} {spread(took)} ns")
        print(f"{size:>6} policies  cedarpy, prepared    {spread(cedar(known))} ns", flush=True)
    for what, found, limit in (("cached", ratios, FLAT_MAX), ("miss", misses, MISS_FLAT_MAX)):
        for label, figures in found.items():
            grows = figures[-1] / figures[0]
            sound &= grows <= limit
            print(f"{what}, {label}: {SIZES[-1]} policies cost {grows:.2f} times {SIZES[0]}, limit {limit}")
    return 0 if sound else 1
