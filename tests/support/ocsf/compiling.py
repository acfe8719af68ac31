"""Makes `VERSION.json` of an OCSF schema export: the classes that we emit, what they reach, nothing but what a check needs.

    python -m tests.support.ocsf.compiling EXPORT.json VERSION.json

EXPORT is what the schema server gives as `/VERSION/export/schema`; the package `ocsf-json-schema` brings it for each release.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

CLASSES: Final = ("detection_finding", "entity_management", "http_activity", "api_activity")
PROFILES: Final = frozenset({"host", "security_control", "trace"})
"""Those that our events may name. What belongs to any other profile is left out, so an event that has it is refused."""


def compiled(export: dict[str, Any]) -> dict[str, Any]:
    """The parts of an export that a check of our classes needs."""
    classes = {export["classes"][name]["uid"]: _thing(export["classes"][name]) for name in CLASSES}
    objects: dict[str, Any] = {}
    wanted = {name for one in classes.values() for name in _reached(one)}
    while wanted:
        name = wanted.pop()
        objects[name] = _thing(export["objects"][name])
        wanted |= _reached(objects[name]) - objects.keys()
    types = export.get("types") or export["dictionary"]["types"]["attributes"]
    facets = ("type", "regex", "max_len", "range", "values")
    kept = {name: {key: one[key] for key in facets if key in one} for name, one in types.items()}
    return {"version": export["version"], "types": kept, "classes": classes, "objects": objects}


def _reached(thing: dict[str, Any]) -> set[str]:
    return {attribute["object"] for attribute in thing["attributes"].values() if "object" in attribute}


def _thing(made: dict[str, Any]) -> dict[str, Any]:
    attributes = {}
    for name, one in sorted(made["attributes"].items()):
        profiles = one.get("profiles") or ([one["profile"]] if one.get("profile") else [])
        if profiles and not PROFILES & set(profiles):
            continue
        short: dict[str, Any] = {"type": one["type"]}
        if one.get("object_type"):
            short["object"] = one["object_type"]
        if one.get("is_array"):
            short["array"] = True
        if one.get("requirement") == "required":
            short["required"] = True
        if one.get("enum"):
            short["enum"] = sorted(one["enum"])
        if profiles:
            short["profiles"] = sorted(PROFILES & set(profiles))
        attributes[name] = short
    found: dict[str, Any] = {"attributes": attributes}
    if made.get("constraints"):
        found["constraints"] = made["constraints"]
    for key in ("category_uid", "profiles"):
        if made.get(key) is not None:
            found[key] = sorted(PROFILES & set(made[key])) if key == "profiles" else made[key]
    return found


if __name__ == "__main__":
    made = compiled(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(made, sort_keys=True, separators=(",", ":")) + "\n")
