"""A compiled policy set as the host records it and every door maps it: canonical JSON, named by its SHA-256.

Equal meaning, equal bytes: policies are in the order of their ids, entities and parents sorted, whitespace gone. Scope
constraints are `["any"]`, `["==", uid]`, `["in", uid]`, `["is", type]`, `["is in", type, uid]`, and for actions also
`["in any", uid, ...]`. A uid is Cedar's text: `Agent::"researcher"`.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from schemas.canonical import canonical, canonical_text
from schemas.errors import OperatorFault

FORM: Final = "wardline-bundle-1"

_FORBID: Final = {"forbid": True, "permit": False}
_HEAD: Final = f'{{"form":"{FORM}","parents":{{'
_MIDDLE: Final = '},"rules":['
_END: Final = "]}"

_scan = json.JSONDecoder().raw_decode

Constraint = tuple[str, ...]
Entity = tuple[str, tuple[str, ...]]
"""A uid and its direct parents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One policy: its id (`@id`, or `FILE#N`), whether it forbids, and its scope."""

    id: str
    forbid: bool
    principal: Constraint = ("any",)
    action: Constraint = ("any",)
    resource: Constraint = ("any",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Policies and the entity hierarchy (uid -> direct parents) that they are decided over."""

    rules: tuple[Rule, ...] = ()
    parents: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The canonical bytes."""
        rules = [
            [r.id, "forbid" if r.forbid else "permit", list(r.principal), list(r.action), list(r.resource)]
            for r in sorted(self.rules, key=lambda r: r.id)
        ]
        parents = {uid: sorted(set(up)) for uid, up in sorted(self.parents.items())}
        value = {"form": FORM, "parents": parents, "rules": rules}
        return canonical(value)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical bytes, 64 hex digits: what records carry as `policy_digest`."""
        return hashlib.sha256(self.encode()).hexdigest()


def parse_bundle(data: bytes) -> Bundle:
    """Read canonical bytes back. Raises OperatorFault when they are not a bundle of this form."""
    try:
        value = json.loads(data)
        if value["form"] != FORM:
            raise OperatorFault(f"the bundle has form `{value['form']}`, this program reads `{FORM}`")
        rules = tuple(
            Rule(id=name, forbid=_FORBID[effect], principal=tuple(p), action=tuple(a), resource=tuple(r))
            for name, effect, p, a, r in value["rules"]
        )
        return Bundle(rules=rules, parents={uid: tuple(up) for uid, up in value["parents"].items()})
    except (ValueError, KeyError, TypeError) as fault:
        raise OperatorFault(f"these {len(data)} bytes are no policy bundle: {fault}") from fault


def pieces(data: bytes) -> Iterator[Entity | Rule]:
    """Read canonical bytes, and nothing else: the entities, then the policies, one after another.

    What `parse_bundle` reads at once, in steps of some microseconds: a door that makes ready the policies to come decides
    meanwhile, and a step that gives no other thread its turn is a call that waits. Raises OperatorFault.
    """
    try:
        text = data.decode()
        at, comma, last = _past(text, 0, _HEAD), "", ""
        while not text.startswith(_MIDDLE, at):
            uid, at = _piece(text, _past(text, at, comma))
            parents, at = _piece(text, _past(text, at, ":"))
            if uid <= last or sorted(set(parents)) != parents:
                raise ValueError("entities")
            yield uid, tuple(parents)
            comma, last = ",", uid
        at, comma, last = at + len(_MIDDLE), "", ""
        while not text.startswith(_END, at):
            (name, effect, principal, action, resource), at = _piece(text, _past(text, at, comma))
            if name < last:
                raise ValueError("rules")
            yield Rule(
                id=name, forbid=_FORBID[effect], principal=tuple(principal), action=tuple(action), resource=tuple(resource)
            )
            comma, last = ",", name
        if len(text) != at + len(_END):
            raise ValueError("end")
    except (ValueError, KeyError, TypeError) as fault:
        parse_bundle(data)  # it says what is wrong, unless only the spelling is
        raise OperatorFault(f"these {len(data)} bytes are not the canonical spelling of their policy bundle") from fault


def _past(text: str, at: int, literal: str) -> int:
    if not text.startswith(literal, at):
        raise ValueError(literal)
    return at + len(literal)


def _piece(text: str, at: int) -> tuple[Any, int]:
    """One value in its one spelling, and where it ends."""
    value, behind = _scan(text, at)
    if canonical_text(value) != text[at:behind]:
        raise ValueError("spelling")
    return value, behind
