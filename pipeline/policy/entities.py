"""`entities.json`: which entity is in which, in Cedar's JSON entity form.

    [{"uid": {"type": "Agent", "id": "researcher"}, "attrs": {}, "parents": [{"type": "AgentGroup", "id": "readers"}]}, ...]

All three keys are required, as in Cedar; `tags` may be there. A uid may also be written `{"__entity": {...}}`. Attributes and
tags must be empty, since only conditions read them. A parent need not have an entry of its own.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from pipeline.policy.lex import Source
from schemas.errors import AgentFault
from schemas.limits import RESOURCE_BYTES_MAX
from schemas.vocabulary import entity_uid, is_type_name, shown

_KEYS: Final = ("uid", "attrs", "parents", "tags")
_REQUIRED: Final = ("uid", "attrs", "parents")
_SPACE: Final = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """One entry: its uid, its direct parents, and the index where it stands."""

    uid: str
    parents: tuple[str, ...]
    at: int


class _Twice(ValueError):
    """A JSON object has one key twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Twice(f"key `{shown(key)}` stands twice in one object")
        found[key] = value
    return found


def parse_entities(source: Source) -> list[Entity]:
    """Every entry of the file. Raises OperatorFault, `FILE:LINE:COLUMN: ...`, at the first that is wrong.

    Inside an entry the place is where the entry begins; the message names the key.
    """
    found: dict[str, Entity] = {}
    for at, value in _values(source):
        try:
            one = _entity(value, at)
        except (AgentFault, _Twice) as fault:
            raise source.fault(at, str(fault)) from fault
        if one.uid in found:
            raise source.fault(at, f"entity `{shown(one.uid)}` already stands at {source.place(found[one.uid].at)}")
        found[one.uid] = one
    return list(found.values())


def _values(source: Source) -> list[tuple[int, Any]]:
    """The items of the array that the file holds, and where each begins."""
    text = source.text
    decoder = json.JSONDecoder(object_pairs_hook=_once)
    at = _skip(text, 0)
    if text.startswith("\ufeff"):
        raise source.fault(0, "the file begins with a byte order mark: save it as utf-8 without one")
    if not text.startswith("[", at):
        raise source.fault(at, "expected an array of entities, `[{\"uid\": ..., \"attrs\": {}, \"parents\": [...]}]`")
    found: list[tuple[int, Any]] = []
    at = _skip(text, at + 1)
    closed = text.startswith("]", at)
    while not closed:
        try:
            value, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as fault:
            raise source.fault(fault.pos, f"this is not json: {fault.msg.lower()}") from fault
        except _Twice as fault:
            raise source.fault(at, str(fault)) from fault
        except (RecursionError, ValueError) as fault:
            raise source.fault(at, "this entity is nested too deeply or has a number that is too long") from fault
        found.append((at, value))
        at = _skip(text, end)
        closed = text.startswith("]", at)
        if not closed and not text.startswith(",", at):
            raise source.fault(at, "this is not json: expected `,` or `]` after an entity")
        if not closed:
            at = _skip(text, at + 1)
    if (rest := _skip(text, at + 1)) < len(text):
        raise source.fault(rest, "this is not json: something stands after the array")
    return found


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _entity(value: Any, at: int) -> Entity:
    if not isinstance(value, dict):
        raise AgentFault("an entity is an object, `{\"uid\": ..., \"attrs\": {}, \"parents\": [...]}`")
    for key in value:
        if key not in _KEYS:
            raise AgentFault(f"an entity has no key `{shown(key)}`: it has `uid`, `attrs`, `parents` and `tags`")
    for key in _REQUIRED:
        if key not in value:
            raise AgentFault(f"this entity has no key `{key}`")
    uid = _uid(value["uid"], "uid")
    for key in ("attrs", "tags"):
        given = value.get(key, {})
        if not isinstance(given, dict):
            raise AgentFault(f"`{key}` of `{shown(uid)}` is not an object")
        if given:
            name = shown(next(iter(given)))
            raise AgentFault(f"`{key}` of `{shown(uid)}` has `{name}`: {_LONG_NAME[key]} are not supported yet")
    parents = value["parents"]
    if not isinstance(parents, list):
        raise AgentFault(f"`parents` of `{shown(uid)}` is not an array")
    above = tuple(_uid(parent, f"parents[{index}]") for index, parent in enumerate(parents))
    for parent in above:
        if _is_action(uid) and not _is_action(parent):
            raise AgentFault(f"`{shown(uid)}` is an action and `{shown(parent)}` is none: actions are only in actions")
    return Entity(uid=uid, parents=tuple(sorted(set(above))), at=at)


_LONG_NAME: Final = {"attrs": "attributes", "tags": "tags"}


def _uid(value: Any, where: str) -> str:
    if isinstance(value, dict) and tuple(value) == ("__entity",):
        value = value["__entity"]
    if not isinstance(value, dict) or set(value) != {"type", "id"} or not all(isinstance(text, str) for text in value.values()):
        raise AgentFault(f'`{where}` is not `{{"type": "...", "id": "..."}}`')
    if not is_type_name(value["type"]):
        raise AgentFault(f"`{where}` has type `{shown(value['type'])}`, which is no name of a type")
    uid = entity_uid(value["type"], value["id"])
    if (size := len(uid.encode())) > RESOURCE_BYTES_MAX:
        raise AgentFault(f"`{where}` `{shown(uid)}` has {size} bytes, limit is {RESOURCE_BYTES_MAX}")
    return uid


def _is_action(uid: str) -> bool:
    return uid.partition('::"')[0].rpartition("::")[2] == "Action"
