"""Texts to one bundle, or the first error. Pure: the same texts give the same bytes, and so the same digest.

An entity without parents changes no decision, so it is counted and not part of the bundle.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.policy.check import check
from pipeline.policy.entities import parse_entities
from pipeline.policy.lex import Source
from pipeline.policy.parse import parse
from schemas.bundle import Bundle, Rule
from schemas.vocabulary import implied_parents, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySet:
    """A compiled set, and what a person wants to know of it."""

    bundle: Bundle
    policies: int = 0
    entities: int = 0


def compile_set(policies: Iterable[Source], entities: Source | None = None) -> PolicySet:
    """Compile policy files and, where there is one, the file of entities.

    Raises OperatorFault, `FILE:LINE:COLUMN: ...`, for the first text that is wrong: files in the given order, entities last.
    """
    named = check(parse(source) for source in policies)
    rules = tuple(
        Rule(id=one.id, forbid=one.clause.forbid, principal=one.clause.principal, action=one.clause.action,
             resource=one.clause.resource)
        for one in named
    )  # fmt: skip
    known = parse_entities(entities) if entities is not None else []
    parents = {one.uid: one.parents for one in known if one.parents}
    if entities is not None and (ring := find_ring(parents)):
        at = next(one.at for one in known if one.uid in ring)
        raise entities.fault(at, f"the hierarchy contains itself: {_shown_ring(ring)}")
    return PolicySet(bundle=Bundle(rules=rules, parents=parents), policies=len(rules), entities=len(known))


def find_ring(parents: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Entities of which each is in the next and the last in the first, implied parents included; empty when there are none."""
    done: set[str] = set()
    for start in sorted(parents):
        path: dict[str, None] = {}
        stack: list[tuple[str, bool]] = [(start, True)]
        while stack:
            uid, entering = stack.pop()
            if not entering:
                del path[uid]
                done.add(uid)
            elif uid in path:
                return list(path)[list(path).index(uid) :]
            elif uid not in done:
                path[uid] = None
                stack.append((uid, False))
                stack.extend((parent, True) for parent in (*parents.get(uid, ()), *implied_parents(uid)))
    return []


def _shown_ring(ring: list[str]) -> str:
    first = ring[:8]
    more = f" in ... ({len(ring) - len(first)} more)" if len(ring) > len(first) else ""
    return " in ".join(f"`{shown(uid)}`" for uid in first) + f"{more} in `{shown(ring[0])}`"


