"""A compiled policy set as the host records it and every door maps it: canonical JSON, named by its SHA-256.

Equal meaning, equal bytes: policies are in the order of their ids, entities and parents sorted, whitespace gone. Scope
constraints are `["any"]`, `["==", uid]`, `["in", uid]`, `["is", type]`, `["is in", type, uid]`, and for actions also
`["in any", uid, ...]`. A uid is Cedar's text: `Agent::"researcher"`.
"""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Final

from schemas.errors import OperatorFault

FORM: Final = "wardline-bundle-1"

_FORBID: Final = {"forbid": True, "permit": False}

Constraint = tuple[str, ...]


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
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()

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
