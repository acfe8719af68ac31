"""Random policy sets in Cedar's own text, the slow oracle that decides them, and Cedar itself beside it.

One seed is one case: a policy file with every kind of scope constraint, a hierarchy that is not transitively closed, and
questions that ask near what the policies name: other entities of the same groups, unknown ones, odd ids, implied parents.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cedarpy

from pipeline.policy.compile import PolicySet, compile_set
from pipeline.policy.lex import Source
from schemas.bundle import Bundle, Constraint, Rule
from schemas.vocabulary import implied_parents, parse_uid

Uid = tuple[str, str]

AGENTS: tuple[Uid, ...] = (
    *(("Agent", name) for name in ("a", "b", "c", 'q"\\', "é\u2028", "line\nbreak\x1f")),
    ("N::Agent", "a"),
    ("User", "a"),
)
GROUPS: tuple[Uid, ...] = tuple(("AgentGroup", name) for name in ("g0", "g1", "g2", "g3"))
ACTIONS: tuple[Uid, ...] = tuple(
    ("Action", name) for name in ("http:GET", "http:PUT", "http:CONNECT", "mcp:tools/call", "mcp:ping", "tcp:CONNECT", "odd")
)
ACTION_GROUPS: tuple[Uid, ...] = (
    *(("Action", name) for name in ("http", "http:read", "http:write", "mcp", "careful")),
    ("N::Action", "careful"),
)
RESOURCES: tuple[Uid, ...] = (
    *(("Tool", name) for name in ("s/read", "s/write", "t/read", "t/", "bare", "/read", "s/a/b")),
    *(("Host", name) for name in ("www.example.com:443", "EXAMPLE.com.:80", "a.github.io:443", "10.0.0.1:80", "[::1]:80")),
    ("Host", "co.uk:1"),
    ("Agent", "a"),
)  # fmt: skip
RESOURCE_GROUPS: tuple[Uid, ...] = (
    ("McpServer", "s"), ("McpServer", "t"), ("ServerGroup", "all"), ("Domain", "example.com"), ("Domain", "a.github.io"),
    ("DomainGroup", "own"), ("ToolGroup", "write"), ("AgentGroup", "g3"),
)  # fmt: skip
SPACES = ("", "", "", " ", "  ", "\n", "\t", "// note: \"permit(\" ;\n", "\u2003", "\r\n")


def text_of(uid: Uid) -> str:
    """The canonical text, made here by itself."""
    kind, name = uid
    out = []
    for character in name:
        code = ord(character)
        if character in '"\\':
            out.append("\\" + character)
        elif character in "\0\t\n\r":
            out.append({"\0": "\\0", "\t": "\\t", "\n": "\\n", "\r": "\\r"}[character])
        elif code < 32 or 127 <= code < 160:
            out.append(f"\\u{{{code:x}}}")
        else:
            out.append(character)
    return f'{kind}::"{"".join(out)}"'


@dataclass(frozen=True, slots=True)
class Case:
    """One policy file, its entities, and what to ask."""

    seed: int
    text: str
    parents: dict[Uid, tuple[Uid, ...]]
    principals: tuple[Uid, ...]
    actions: tuple[Uid, ...]
    resources: tuple[Uid, ...]

    def compiled(self) -> PolicySet:
        """By our compiler, from the text and the JSON of the entities."""
        return compile_set([Source("case.cedar", self.text)], Source("entities.json", json.dumps(entity_json(self.parents))))


def entity_json(parents: dict[Uid, tuple[Uid, ...]]) -> list[dict[str, Any]]:
    """Cedar's JSON entity form."""

    def uid(one: Uid) -> dict[str, str]:
        return {"type": one[0], "id": one[1]}

    return [{"uid": uid(one), "attrs": {}, "parents": [uid(above) for above in up]} for one, up in parents.items()]


def make_case(seed: int) -> Case:
    """The case of a seed."""
    rng = random.Random(seed)
    parents: dict[Uid, tuple[Uid, ...]] = {}

    def put(low: Sequence[Uid], high: Sequence[Uid], often: float) -> None:
        for one in low:
            if rng.random() < often:
                up = rng.sample(high, rng.randint(0, min(2, len(high))))
                parents[one] = tuple(dict.fromkeys((*parents.get(one, ()), *up)))

    put(AGENTS, GROUPS, 0.6)
    for lower, group in enumerate(GROUPS):  # a group is only in later ones: no rings
        put([group], GROUPS[lower + 1 :], 0.5)
    put(ACTIONS, ACTION_GROUPS[4:], 0.4)
    put(ACTION_GROUPS[:2], ACTION_GROUPS[4:], 0.2)
    put(RESOURCES, RESOURCE_GROUPS[2:], 0.3)
    put(RESOURCE_GROUPS[:2], RESOURCE_GROUPS[2:3], 0.5)
    put(RESOURCE_GROUPS[3:5], RESOURCE_GROUPS[5:6], 0.5)
    policies = [_policy(rng, number) for number in range(rng.choice((0, 1, 2, 3, 5, 8, 13, 30)))]
    return Case(
        seed=seed,
        text="".join(policies) + rng.choice(SPACES),
        parents=parents,
        principals=(*AGENTS, GROUPS[rng.randrange(4)], ("Agent", "unknown")),
        actions=(*ACTIONS, ACTION_GROUPS[rng.randrange(6)], ("Action", "mcp:unknown")),
        resources=(*RESOURCES, RESOURCE_GROUPS[rng.randrange(8)], ("Tool", "s/unknown"), ("Host", "new.example.com:1")),
    )


def _policy(rng: random.Random, number: int) -> str:
    words = [_annotation(rng, f"p{number}") if rng.random() < 0.8 else "", rng.choice(("permit", "permit", "forbid")), "("]
    for index, (name, low, high) in enumerate(
        (("principal", AGENTS, GROUPS), ("action", ACTIONS, ACTION_GROUPS), ("resource", RESOURCES, RESOURCE_GROUPS))
    ):
        words += [",", *_test(rng, name, low, high)] if index else _test(rng, name, low, high)
    words += [rng.choice(("", "", ",")), ")", ";"]
    return "".join(word + (rng.choice(SPACES) if word else "") for word in words)


def _annotation(rng: random.Random, name: str) -> str:
    more = rng.choice(("", '@reason("because; permit(")', "@if", '@note ( "\\u{41}" )\n'))
    return f"{more}{' ' if more else ''}@id({_string(rng, name)})"


def _test(rng: random.Random, name: str, low: Sequence[Uid], high: Sequence[Uid]) -> list[str]:
    def entity(often_low: float) -> list[str]:
        one = rng.choice(low if rng.random() < often_low else high)
        words = [_path(rng, one[0]), "::", _string(rng, one[1])]
        return ["(", *words, ")"] if rng.random() < 0.05 else words

    form = rng.random()
    if form < 0.2:
        return [name]
    if form < 0.45:
        return [name, "==", *entity(0.95)]
    if form < 0.7:
        return [name, " in ", *entity(0.1)]
    if name == "action":
        items: list[str] = []
        for _ in range(rng.randint(0, 3)):
            items += [*entity(0.6), ","]
        return [name, " in ", "[", *(items[:-1] if rng.random() < 0.5 else items), "]"]
    kind = rng.choice(low if rng.random() < 0.9 else high)[0]
    return [name, " is ", _path(rng, kind)] if form < 0.85 else [name, " is ", _path(rng, kind), " in ", *entity(0.1)]


def _path(rng: random.Random, kind: str) -> str:
    return (" :: " if rng.random() < 0.1 else "::").join(kind.split("::"))


def _string(rng: random.Random, text: str) -> str:
    out = []
    for character in text:
        code = ord(character)
        ways = [f"\\u{{{code:x}}}", f"\\u{{{code:06X}}}"]
        if code < 128:
            ways.append(f"\\x{code:02x}")
        if character in "\"'\\\0\t\n\r":
            ways += [{"\0": "\\0", "\t": "\\t", "\n": "\\n", "\r": "\\r"}.get(character, "\\" + character)] * 5
        plain = character not in '"\\\r'
        out.append(character if plain and rng.random() < 0.95 else rng.choice(ways))
    return f'"{"".join(out)}"'


def closure(parents: dict[str, tuple[str, ...]], uid: str) -> set[str]:
    """An entity and everything that it is in, implied parents included."""
    found: set[str] = set()
    todo = [uid]
    while todo:
        one = todo.pop()
        if one not in found:
            found.add(one)
            todo += [*parents.get(one, ()), *implied_parents(one)]
    return found


def holds(constraint: Constraint, uid: str, above: set[str]) -> bool:
    """One scope test, as the Cedar book says it."""
    kind = uid.partition('::"')[0]
    match constraint:
        case ("any",):
            return True
        case ("==", other):
            return uid == other
        case ("in", group):
            return group in above
        case ("in any", *groups):
            return any(group in above for group in groups)
        case ("is", wanted):
            return kind == wanted
        case ("is in", wanted, group):
            return kind == wanted and group in above
    raise AssertionError(constraint)


@dataclass(frozen=True, slots=True)
class Said:
    """A decision over a chain, without what does not depend on the question."""

    allow: bool
    reason: str
    because: tuple[str, ...]


def applies(bundle: Bundle, rule: Rule, link: str, action: str, resource: str) -> bool:
    """Whether a policy's scope takes in one link's question."""
    asked = ((rule.principal, link), (rule.action, action), (rule.resource, resource))
    return all(holds(constraint, uid, closure(bundle.parents, uid)) for constraint, uid in asked)


def oracle(bundle: Bundle, links: Sequence[str], action: str, resource: str) -> Said:
    """The decision over a chain, every policy looked at for every link."""
    hits = [[rule for rule in bundle.rules if applies(bundle, rule, link, action, resource)] for link in links]
    return chain_of([({r.id for r in hit if not r.forbid}, {r.id for r in hit if r.forbid}) for hit in hits])


def chain_of(links: Sequence[tuple[set[str], set[str]]]) -> Said:
    """The AND over links, each given as the ids that permit it and the ids that forbid it."""
    if not links:
        return Said(False, "identity", ())
    forbids = {name for _, forbidding in links for name in forbidding}
    if forbids:
        return Said(False, "forbid", tuple(sorted(forbids)))
    if not all(permitting for permitting, _ in links):
        return Said(False, "no-permit", ())
    return Said(True, "permit", tuple(sorted({name for permitting, _ in links for name in permitting})))


class Cedar:
    """Cedar's own answers for one set: `cedarpy`, over a hierarchy that spells out the implied parents."""

    def __init__(self, text: str, parents: dict[str, tuple[str, ...]], uids: Sequence[str], ids: Sequence[str]) -> None:
        self._policies = cedarpy.PolicySet.from_str(text)
        self._ids = ids
        named = {*uids, *parents, *(above for up in parents.values() for above in up)}
        named = {one for uid in named for one in closure(parents, uid)}
        whole = {parse_uid(uid): tuple(map(parse_uid, (*parents.get(uid, ()), *implied_parents(uid)))) for uid in named}
        self._entities = cedarpy.Entities.from_json_str(json.dumps(entity_json(whole)))

    def ask(self, questions: Sequence[tuple[str, str, str]]) -> list[tuple[set[str], set[str]]]:
        """For every (principal, action, resource): the ids that permit it (when it is allowed), those that forbid it."""

        def entity(uid: str) -> dict[str, str]:
            kind, name = parse_uid(uid)
            return {"type": kind, "id": name}

        requests = [
            {"principal": entity(p), "action": entity(a), "resource": entity(r), "context": {}} for p, a, r in questions
        ]  # fmt: skip
        found = []
        for answer in cedarpy.is_authorized_batch(requests, self._policies, self._entities) if requests else ():
            assert not answer.diagnostics.errors
            ids = {self._ids[int(reason.removeprefix("policy"))] for reason in answer.diagnostics.reasons}
            found.append((ids, set()) if answer.decision == cedarpy.Decision.Allow else (set(), ids))
        return found
