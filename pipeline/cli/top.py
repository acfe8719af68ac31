"""`wardline top`: which agents are at work, where to, how it is decided, and what each door has open, as it is now."""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.cli.asking import Asker, asking, named
from pipeline.cli.common import Commands, add_clickhouse, clock, config_of, home_of, printable, shown_size, table
from pipeline.cli.doors import living_doors
from schemas.errors import PeerFault
from schemas.home import Home
from schemas.records import Kind
from schemas.store import ENDING

WINDOW_S: Final = 15
"""What is `now`: calls of which something was stored within this. An open tunnel says how far it is every 10 s."""

INTERVAL_S: Final = 2.0
ROWS_MAX: Final = 15
"""Agents and destinations that are shown: those with the most calls."""

DOOR_FIELDS: Final = ("state", "address", "calls", "refused", "tunnels", "open", "epoch")
"""What a door says of itself that is shown."""

Row = dict[str, Any]


@dataclass(slots=True)
class Snapshot:
    """What is shown: of each set the rows with the most calls, and the doors of this machine."""

    taken_s: float
    total: Row = field(default_factory=dict)
    agents: list[Row] = field(default_factory=list)
    places: list[Row] = field(default_factory=list)
    verdicts: list[Row] = field(default_factory=list)
    refused: list[Row] = field(default_factory=list)
    doors: list[Row] = field(default_factory=list)


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add `top`."""
    text = "live: agents at work, destinations, verdicts, rates, doors"
    parser = commands.add_parser("top", parents=[common], help=text, allow_abbrev=False)
    text = f"how often it is looked at anew (default {INTERVAL_S:g})"
    parser.add_argument("--interval", type=interval, default=INTERVAL_S, metavar="SECONDS", help=text)
    text = "print it once and end; so it does where nobody looks at a terminal"
    parser.add_argument("--once", action="store_true", help=text)
    add_clickhouse(parser)
    parser.set_defaults(run=run)


def interval(text: str) -> float:
    """A number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.2 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"`{text}` is not a number of seconds, 0.2 to 3600")
    return value


def run(args: argparse.Namespace) -> int:
    """`wardline top`, until Ctrl-C. Raises PeerFault when the store is away at the beginning."""
    home = home_of(args)
    config = config_of(args, home)
    with asking(home, config) as asker:
        first = look(asker, home)
        if args.once or not sys.stdout.isatty():
            print(as_text(first))
            return 0
        _live(asker, home, first, args.interval)
    return 0


def _live(asker: Asker, home: Home, shown: Snapshot, every_s: float) -> None:
    try:
        with Live(as_tables(shown), console=Console(), screen=True, auto_refresh=False) as live:
            while True:
                live.refresh()
                time.sleep(every_s)
                try:
                    shown, problem = look(asker, home), ""
                except PeerFault as fault:
                    problem = str(fault)
                live.update(as_tables(shown, problem))
    except KeyboardInterrupt:
        return


# -- what is so ----------------------------------------------------------------------------------------------------------


def look(asker: Asker, home: Home) -> Snapshot:
    """Take a snapshot.

    By the records themselves and not by `calls`: the last word on a call is the last verdict among its records, and only the
    calls of which one came in now are read, by the table's key.
    """
    recent = f"ingested >= now() - {WINDOW_S} AND boot != 0"
    alive = f"{Kind.DECISION:d}, {Kind.PROGRESS:d}, {Kind.EFFECT:d}, {Kind.LOST:d}"
    one = (
        f"SELECT toString(anyIf(r.agent, kind = {Kind.DECISION:d})) AS agent,"
        f" toString(anyIf(r.resource, kind = {Kind.DECISION:d})) AS resource,"
        f" countIf(kind = {Kind.DECISION:d} AND ingested >= now() - {WINDOW_S}) AS made,"
        " argMaxIf((r.verdict, toString(r.reason)), r.seq, r.verdict != 255) AS word,"
        f" word.1 = 1 AS allowed, word.2 AS reason, allowed AND countIf({ENDING}) = 0 AS open,"
        " max(r.bytes_out) AS bytes_out, max(r.bytes_in) AS bytes_in"
        f" FROM records AS r WHERE kind IN ({alive}) AND (boot, call_seq) IN"
        f" (SELECT boot, call_seq FROM records WHERE {recent} AND kind IN ({alive})) GROUP BY boot, call_seq"
    )
    rows = asker.rows(
        "SELECT grouping(agent) AS no_agent, grouping(resource) AS no_place, grouping(reason) AS no_reason,"
        " agent, resource, reason, allowed AS yes, sum(made) AS calls, countIf(made > 0 AND NOT allowed) AS denied,"
        " countIf(open) AS opened, sum(bytes_out) AS sent, sum(bytes_in) AS received, count() AS touched"
        f" FROM ({one}) GROUP BY GROUPING SETS ((agent), (resource), (allowed, reason), ())"
        f" ORDER BY touched DESC, agent, resource, reason LIMIT {ROWS_MAX} BY no_agent, no_place, no_reason"
    )
    refused = asker.rows(
        "SELECT toString(reason) AS reason, error AS what, sum(r.count) AS calls FROM records AS r"
        f" WHERE {recent} AND kind = {Kind.COUNT:d} GROUP BY ALL ORDER BY calls DESC, what LIMIT {ROWS_MAX}"
    )
    sets = {key: [row for row in rows if (row["no_agent"], row["no_place"], row["no_reason"]) == key] for key in _SETS}
    agents, places, verdicts, total = (sets[key] for key in _SETS)
    return Snapshot(
        taken_s=time.time(), total=total[0] if total else {}, agents=agents, places=places, verdicts=verdicts, refused=refused,
        doors=doors_of(home),
    )  # fmt: skip


_SETS: Final = ((0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 1))
"""Which columns each grouping set leaves out: by agent, by destination, by verdict and reason, all in one."""


def doors_of(home: Home) -> list[Row]:
    """What the living doors of this machine say of themselves."""
    return [{"name": name, **{field: said.get(field, "") for field in DOOR_FIELDS}} for name, said in living_doors(home)]


# -- for people ----------------------------------------------------------------------------------------------------------


def title(shown: Snapshot) -> str:
    """The line above all tables."""
    total = shown.total
    calls, denied, opened = (int(total.get(name, 0)) for name in ("calls", "denied", "opened"))
    return (f"{clock(shown.taken_s)} UTC, last {WINDOW_S} s: {calls / WINDOW_S:.1f} calls/s, {calls} calls, {denied} denied, "
            f"{opened} open")  # fmt: skip


def sections(shown: Snapshot) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """Head and rows of each table that has any."""
    moved = ("CALLS/S", "CALLS", "DENIED", "OPEN", "OUT", "IN")
    found: list[tuple[tuple[str, ...], list[tuple[str, ...]]]] = [
        (("AGENT", *moved), [(row["agent"] or "-", *_moved(row)) for row in shown.agents]),
        (("DESTINATION", *moved), [(named(row["resource"]) or "-", *_moved(row)) for row in shown.places]),
        (("VERDICT", "REASON", "CALLS"), [_verdict(row) for row in shown.verdicts if row["calls"]]),
        (("REFUSED UNKNOWN", "WHY", "REQUESTS"), [(row["reason"], row["what"], str(row["calls"])) for row in shown.refused]),
        (("DOOR", "STATE", "ADDRESS", "ALLOWED", "REFUSED", "TUNNELS", "OPEN", "EPOCH"),
         [tuple(str(value) for value in row.values()) for row in shown.doors]),
    ]
    return [(head, rows) for head, rows in found if rows]


def _moved(row: Row) -> tuple[str, ...]:
    calls = int(row["calls"])
    return (f"{calls / WINDOW_S:.1f}", str(calls), str(row["denied"]), str(row["opened"]), shown_size(row["sent"]),
            shown_size(row["received"]))  # fmt: skip


def _verdict(row: Row) -> tuple[str, str, str]:
    return "allow" if row["yes"] else "deny", row["reason"], str(row["calls"])


def as_text(shown: Snapshot) -> str:
    """A snapshot for whoever reads it later."""
    parts = [table(head, rows) for head, rows in sections(shown)]
    return "\n\n".join([title(shown), *(parts or ["nothing was recorded"])])


def as_tables(shown: Snapshot, problem: str = "") -> Group:
    """A snapshot for a terminal. What was recorded is text there, and neither markup nor an order to the terminal."""
    parts: list[Text | Table] = [Text(title(shown), style="bold")]
    if problem:
        parts.append(Text(printable(f"{problem}; shown is what was so before"), style="bold red"))
    for head, rows in sections(shown):
        made = Table(box=None, header_style="bold cyan", padding=(0, 2, 0, 0))
        for number, name in enumerate(head):
            made.add_column(name, justify="left" if number == 0 or name in ("REASON", "WHY", "STATE", "ADDRESS") else "right")
        for row in rows:
            made.add_row(*cells_of(row))
        parts += [Text(""), made]
    return Group(*parts)


def cells_of(row: Sequence[str]) -> list[Text]:
    """The cells of a row; a denial stands out."""
    return [Text(printable(text), style="red" if text == "deny" else "") for text in row]
