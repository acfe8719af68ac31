"""`wardline inventory`: who and what has been seen, how each agent proves itself, and who tried without being anybody."""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pipeline.cli.asking import Asker, asking, jsonable
from pipeline.cli.common import Commands, add_clickhouse, clock, config_of, home_of, table

KINDS: Final = ("agent", "tool", "destination", "principal", "shadow")
TITLES: Final[Mapping[str, str]] = {
    "agent": "agents", "tool": "tools", "destination": "destinations", "principal": "principals", "shadow": "shadow agents",
}  # fmt: skip
BEARER: Final = "secret"
"""The kind of proof that is worth as much as whoever holds it says."""

MARK: Final = "!"
"""Stands before a bearer secret."""

UNPROVED: Final = "(unproved)"
"""Calls of an agent that nothing proved, such as replayed ones."""

Row = dict[str, Any]


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add `inventory`."""
    text = "who and what has been seen: agents with their credentials, tools, destinations, principals, shadow agents"
    parser = commands.add_parser("inventory", parents=[common], help=text, allow_abbrev=False)
    parser.add_argument("--kind", choices=KINDS, help="only these")
    parser.add_argument("--json", action="store_true", help="for programs")
    add_clickhouse(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """`wardline inventory`."""
    home = home_of(args)
    config = config_of(args, home)
    kinds = KINDS if args.kind is None else (args.kind,)
    with asking(home, config) as asker:
        rows = collect(asker, kinds)
        nameless = _nameless(asker) if "shadow" in kinds else 0
    if args.json:
        print(json.dumps([jsonable(row) for row in rows], indent=2))
    else:
        print(render(rows, kinds, nameless))
    return 0


def collect(asker: Asker, kinds: Sequence[str]) -> list[Row]:
    """What was seen, and the agents that control has and nobody has seen yet, by kind and name.

    Each has `bearer`: whether it has shown a bearer secret; an agent also `owner` and `listed`: whether control has it now.
    """
    listed = ", ".join(f"'{kind}'" for kind in kinds)
    found = asker.rows(f"SELECT * FROM inventory WHERE kind IN ({listed}) ORDER BY kind, name")
    owners = _owners(asker) if "agent" in kinds else {}
    seen = {row["name"] for row in found if row["kind"] == "agent"}
    unseen = {"kind": "agent", "first_seen": None, "last_seen": None, "calls": 0, "allowed": 0, "denied": 0, "failed": 0}
    found += [{**unseen, "name": name, "credentials": []} for name in owners if name not in seen]
    for row in found:
        row["bearer"] = BEARER in row["credentials"]
        if row["kind"] == "agent":
            row |= {"owner": owners.get(row["name"], ""), "listed": row["name"] in owners}
    return sorted(found, key=lambda row: (KINDS.index(row["kind"]), row["name"]))


def _owners(asker: Asker) -> dict[str, str]:
    """Name -> owner of the agents that control has now."""
    rows = asker.rows(
        "SELECT name, JSONExtractString(last, 'owner') AS owner FROM (SELECT name, argMax(value, epoch) AS last FROM control"
        " WHERE kind = 'agent' AND journal = (SELECT max(journal) FROM control) GROUP BY name) WHERE last != ''"
    )
    return {row["name"]: row["owner"] for row in rows}


def _nameless(asker: Asker) -> int:
    """Requests that were refused as nobody's and claimed no name."""
    rows = asker.rows("SELECT sum(count) AS requests FROM refusals WHERE reason = 'identity' AND agent = ''")
    return int(rows[0]["requests"]) if rows else 0


# -- for people ----------------------------------------------------------------------------------------------------------


def render(rows: Sequence[Row], kinds: Sequence[str], nameless: int) -> str:
    """A table for each kind, and what stands out under it."""
    parts = []
    for kind in kinds:
        some = [row for row in rows if row["kind"] == kind]
        lines = [f"{TITLES[kind]}: {len(some)}"]
        if some and kind == "agent":
            head = ("NAME", "OWNER", "CREDENTIALS", "FIRST SEEN", "LAST SEEN", "CALLS", "ALLOWED", "DENIED", "FAILED")
            lines.append(table(head, [_agent(row) for row in some]))
        elif some and kind == "shadow":
            lines.append(table(("NAME CLAIMED", "FIRST SEEN", "LAST SEEN", "REQUESTS"),
                               [(row["name"], *_seen(row), str(row["failed"])) for row in some]))  # fmt: skip
        elif some:
            lines.append(table(("NAME", "FIRST SEEN", "LAST SEEN", "CALLS", "ALLOWED", "DENIED"),
                               [(row["name"], *_seen(row), *_counts(row)) for row in some]))  # fmt: skip
        parts.append("\n".join([*lines, *_notes(kind, some, nameless)]))
    return "\n\n".join(parts)


def _notes(kind: str, rows: Sequence[Row], nameless: int) -> list[str]:
    if kind == "agent":
        bearers = sum(row["bearer"] for row in rows)
        notes = [f"{bearers} of {len(rows)} prove themselves by a bearer secret ({MARK}): whoever reads it can be that agent"]
        strangers = sum(not row["listed"] for row in rows)
        return notes + ([f"{strangers} of them are no agents of control now (`wardline agent list`)"] if strangers else [])
    if kind == "shadow" and nameless:
        return [f"{nameless} more requests showed no credential and no name"]
    return []


def _agent(row: Row) -> tuple[str, ...]:
    return row["name"], row["owner"] or "-", _credentials(row), *_seen(row), *_counts(row), str(row["failed"])


def _credentials(row: Row) -> str:
    marked = [f"{MARK} {kind}" if kind == BEARER else kind or UNPROVED for kind in row["credentials"]]
    return ", ".join(marked) or "-"


def _seen(row: Row) -> tuple[str, str]:
    first, last = (clock(row[name].timestamp()) if row[name] is not None else "never" for name in ("first_seen", "last_seen"))
    return first, last


def _counts(row: Row) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in ("calls", "allowed", "denied"))
