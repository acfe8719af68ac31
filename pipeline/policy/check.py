"""What makes clauses of several files one set: every policy has an id that no other has.

An id is the value of `@id`, or `FILE#N` for the N-th policy of a file. Records carry the ids of the policies that decided, so
an id is short, is not empty, and has no control characters.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.policy.parse import Clause
from schemas.limits import NAME_BYTES_MAX, POLICIES_MAX
from schemas.vocabulary import shown


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedClause:
    """A clause and its id."""

    id: str
    clause: Clause


def check(files: Iterable[list[Clause]]) -> list[NamedClause]:
    """Give every clause of every file its id. Raises OperatorFault for an id that is none, or that stands twice."""
    found: dict[str, NamedClause] = {}
    for clauses in files:
        for number, clause in enumerate(clauses, 1):
            given = clause.annotations.get("id")
            at = given.at if given else clause.at
            name = given.value if given else f"{clause.source.short}#{number}"
            if problem := _problem(name):
                raise clause.source.fault(at, problem)
            if name in found:
                before = found[name].clause
                raise clause.source.fault(at, f"policy id `{shown(name)}` already stands at {before.source.place(before.at)}")
            if len(found) == POLICIES_MAX:
                raise clause.source.fault(at, f"this is policy {POLICIES_MAX + 1} of the set, limit is {POLICIES_MAX}")
            found[name] = NamedClause(id=name, clause=clause)
    return list(found.values())


def _problem(name: str) -> str:
    if not name:
        return '`@id` is empty: write `@id("name")`'
    if any(ord(character) < 32 or 127 <= ord(character) < 160 for character in name):
        return f"policy id `{shown(name)}` has a control character"
    if (size := len(name.encode())) > NAME_BYTES_MAX:
        return f"policy id `{shown(name)}` has {size} bytes, limit is {NAME_BYTES_MAX}"
    return ""
