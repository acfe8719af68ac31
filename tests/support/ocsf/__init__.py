"""A strict check of an event against OCSF, for tests: no unknown attribute, none missing that is required, each of its type.

`1.1.0.json` and `1.8.0.json` hold what the check needs of the Open Cybersecurity Schema Framework (Apache License 2.0, see
`LICENSE.txt`; changed: only the classes that we emit and what they reach, without descriptions and without profiles that we do
not use). `compiling` makes them of the schema server's exports.
"""

import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

PRIMITIVE: Final[Mapping[str, type | tuple[type, ...]]] = {
    "string_t": str, "integer_t": int, "long_t": int, "float_t": (int, float), "boolean_t": bool,
}  # fmt: skip
LONG: Final = 1 << 63


@functools.cache
def schema(version: str) -> dict[str, Any]:
    """The compiled schema of one version."""
    return dict(json.loads((Path(__file__).parent / f"{version}.json").read_text()))


def problems(event: Mapping[str, Any]) -> list[str]:
    """What is wrong with an event, by the version that it names; empty when it is valid."""
    version = event.get("metadata", {}).get("version", "")
    if version not in ("1.1.0", "1.8.0"):
        return [f"metadata.version: `{version}`"]
    known = schema(version)
    made = known["classes"].get(str(event.get("class_uid")))
    if made is None:
        return [f"class_uid: `{event.get('class_uid')}`"]
    profiles = event["metadata"].get("profiles", [])
    found = [f"metadata.profiles: `{one}` is not one of this class" for one in profiles if one not in made["profiles"]]
    if event.get("category_uid") != made["category_uid"]:
        found.append(f"category_uid: {event.get('category_uid')}, must be {made['category_uid']}")
    if event.get("type_uid") != event["class_uid"] * 100 + event.get("activity_id", 0):
        found.append(f"type_uid: {event.get('type_uid')}")
    return [*found, *_thing(known, made, event, "", frozenset(profiles))]


def _thing(known: Any, made: Any, value: Any, where: str, profiles: frozenset[str]) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{where}: is no object"
        return
    attributes = made["attributes"]
    if where and not attributes:
        return  # the object without attributes is OCSF's word for anything
    for name, one in value.items():
        attribute = attributes.get(name)
        at = f"{where}.{name}".lstrip(".")
        if attribute is None:
            yield f"{at}: unknown attribute"
        elif "profiles" in attribute and not profiles & set(attribute["profiles"]):
            yield f"{at}: needs the profile {' or '.join(attribute['profiles'])}"
        elif attribute.get("array"):
            if not isinstance(one, list):
                yield f"{at}: is no array"
                continue
            for number, item in enumerate(one):
                yield from _value(known, attribute, item, f"{at}[{number}]", profiles)
        else:
            yield from _value(known, attribute, one, at, profiles)
    for name, attribute in attributes.items():
        wanted = "profiles" not in attribute or bool(profiles & set(attribute["profiles"]))
        if attribute.get("required") and wanted and name not in value:
            yield f"{where}.{name}".lstrip(".") + ": is missing"
    constraints = made.get("constraints", {})
    if (some := constraints.get("at_least_one")) and not set(some) & value.keys():
        yield f"{where}: has none of {', '.join(some)}"
    if (one_of := constraints.get("just_one")) and len(set(one_of) & value.keys()) != 1:
        yield f"{where}: must have one of {', '.join(one_of)}"


def _value(known: Any, attribute: Any, value: Any, where: str, profiles: frozenset[str]) -> Iterator[str]:
    kind = attribute["type"]
    if kind == "json_t":
        return
    if kind == "object_t":
        yield from _thing(known, known["objects"][attribute["object"]], value, where, profiles)
        return
    facets = known["types"][kind]
    primitive = facets.get("type", kind)
    primitive = known["types"].get(primitive, {}).get("type", primitive)
    wanted = PRIMITIVE[primitive]
    if not isinstance(value, wanted) or (isinstance(value, bool) and primitive != "boolean_t"):
        yield f"{where}: `{value}` is no {kind}"
        return
    if "enum" in attribute and str(value) not in attribute["enum"]:
        yield f"{where}: `{value}` is none of {', '.join(attribute['enum'])}"
    if "regex" in facets and not re.search(facets["regex"], str(value)):
        yield f"{where}: `{value}` is no {kind}"
    if len(str(value)) > facets.get("max_len", LONG):
        yield f"{where}: has {len(str(value))} characters, limit is {facets['max_len']}"
    low, high = facets.get("range", (-LONG, LONG - 1)) if isinstance(value, int) else (0, 0)
    if isinstance(value, int) and not low <= value <= high:
        yield f"{where}: {value} is outside {low} to {high}"
