"""`wardline calls`: the newest calls as a table, and with `--follow` each one as it comes in and when its last word changes."""

import argparse
import json
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from pipeline.cli.arrivals import Arrivals, Key, calls_in
from pipeline.cli.asking import Asker, asking, jsonable, named, shown_span, shown_time
from pipeline.cli.common import Commands, add_clickhouse, config_of, home_of, printable, shown_size, table
from pipeline.cli.revoke import moment, span
from schemas.errors import PeerFault
from schemas.selectors import make_selector
from schemas.vocabulary import entity_uid

LIMIT: Final = 50
LIMIT_MAX: Final = 100_000
FOLLOW_LIMIT: Final = 10
"""Calls that `--follow` begins with."""

POLL_S: Final = 0.5
AWAY_S: Final = 1.0
"""How often a store that is away is looked for."""

KEYS_MAX: Final = 2_000
"""Calls that one question names: its text stays far below the store's 1 MiB."""

STATES_MAX: Final = 200_000
"""Calls of which `--follow` remembers the last word that it printed. The one that was printed first is forgotten first: should
anything more come of it, that is printed as new."""

HEAD: Final = ("TIME", "VERDICT", "AGENT", "ACTION", "WHERE", "ENDED", "OUT", "IN", "TOOK", "CALL")
WIDE: Final = (23, 14, 14, 14, 36, 9, 9, 9, 8, 32)
"""Columns of `--follow`, in characters: a longer text moves what is behind it."""

Row = dict[str, Any]


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add `calls`."""
    parser = commands.add_parser("calls", parents=[common], help="the newest calls, or each as it comes", allow_abbrev=False)
    text = "print each call when it appears, and again when its last word changes, until Ctrl-C"
    parser.add_argument("--follow", action="store_true", help=text)
    parser.add_argument("--agent", metavar="NAME", help="only this agent's")
    parser.add_argument("--session", metavar="ID", help="only of this session")
    text = "only to this `name:port`, host, registrable domain, MCP server or `server/tool`"
    parser.add_argument("--destination", metavar="NAME", help=text)
    parser.add_argument("--denied", action="store_true", help="only what was refused, before or after it went out")
    text = "how long back, such as 90s, 30m, 1h, 7d, or from a time on, such as 2026-01-31T12:00:00Z"
    parser.add_argument("--since", type=since, metavar="TIME", help=text)
    text = f"so many, the newest (default {LIMIT}, with --follow {FOLLOW_LIMIT} to begin with)"
    parser.add_argument("--limit", type=limit, metavar="N", help=text)
    parser.add_argument("--json", action="store_true", help="one JSON object a line, with every column of the view `calls`")
    add_clickhouse(parser)
    parser.set_defaults(run=run)


def since(text: str) -> float:
    """Seconds since 1970 of a time, or of a span back from now."""
    try:
        return time.time() - span(text)
    except argparse.ArgumentTypeError:
        pass
    try:
        return moment(text)
    except argparse.ArgumentTypeError as fault:
        what = "neither a span such as 90s, 1h or 7d nor a time such as 2026-01-31T12:00:00Z"
        raise argparse.ArgumentTypeError(f"`{text}` is {what}") from fault


def limit(text: str) -> int:
    """How many calls."""
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 0 < int(text) <= LIMIT_MAX:
        raise argparse.ArgumentTypeError(f"`{text}` is not a number from 1 to {LIMIT_MAX}")
    return int(text)


class Wanted:
    """Which calls are asked for: a condition on the view `calls`, its words apart from it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.parameters: dict[str, Any] = {}
        parts: list[str] = []
        if args.agent is not None:
            parts.append("agent = {agent:String}")
            self.parameters["agent"] = args.agent
        if args.session is not None:
            parts.append("session = {session:String}")
            self.parameters["session"] = args.session
        if args.destination is not None:
            name = make_selector("destination", args.destination).name
            parts.append("(host = {place:String} OR domain = {place:String} OR resource IN ({as_host:String}, {as_tool:String})"
                         " OR startsWith(resource, {as_server:String}))")  # fmt: skip
            tool = entity_uid("Tool", f"{name}/")
            self.parameters |= {"place": name, "as_host": entity_uid("Host", name), "as_tool": entity_uid("Tool", name),
                                "as_server": tool[:-1]}  # fmt: skip
        if args.denied:
            parts.append("verdict = 'deny'")
        self.where = " AND ".join(parts) or "1"
        """Of `--follow` too: `--since` is about what it begins with."""
        self.from_when = "1" if args.since is None else f"time >= toDateTime64({args.since:.6f}, 6, 'UTC')"

    def newest(self, asker: Asker, count: int) -> list[Row]:
        """The newest, oldest of them first.

        The keys first, then the rest by the keys: what a call says of itself must not be read of each call that is looked at.
        """
        found = asker.rows(f"SELECT boot, seq FROM calls WHERE ({self.where}) AND {self.from_when}"
                           f" ORDER BY time DESC, boot DESC, seq DESC LIMIT {count}", **self.parameters)  # fmt: skip
        rows = details(asker, [(row["boot"], row["seq"]) for row in found])
        return sorted(rows, key=lambda row: (row["time"], row["boot"], row["seq"]))

    def of(self, asker: Asker, keys: Iterable[Key]) -> list[Row]:
        """Those of some calls that are wanted, in the order of their last words."""
        rows = details(asker, keys, self.where, **self.parameters)
        return sorted(rows, key=lambda row: (row["ended"] or row["recorded"], row["boot"], row["seq"]))


def details(asker: Asker, keys: Iterable[Key], where: str = "1", **parameters: Any) -> list[Row]:
    """All columns of calls by their keys; those that `where` is true of."""
    wanted = sorted(set(keys))
    found: list[Row] = []
    for at in range(0, len(wanted), KEYS_MAX):
        some = wanted[at : at + KEYS_MAX]
        boots, seqs = sorted({boot for boot, _ in some}), sorted({seq for _, seq in some})
        # two lists and not one of pairs: both sides of the view's join are then read by the table's key
        rows = asker.rows(f"SELECT * FROM calls WHERE boot IN ({', '.join(map(str, boots))})"
                          f" AND seq IN ({', '.join(map(str, seqs))}) AND ({where})", **parameters)  # fmt: skip
        asked = set(some)
        found += [row for row in rows if (row["boot"], row["seq"]) in asked]
    return found


def run(args: argparse.Namespace) -> int:
    """`wardline calls`."""
    home = home_of(args)
    config = config_of(args, home)
    wanted = Wanted(args)
    with asking(home, config) as asker:
        if args.follow:
            return Follow(asker, wanted, line_as_json if args.json else line_of).run(args)
        rows = wanted.newest(asker, args.limit or LIMIT)
    if args.json:
        for row in rows:
            print(line_as_json(row))
    elif rows:
        print(table(HEAD, map(cells, rows)))
    else:
        print("no call is stored that fits")
    return 0


class Follow:
    """Prints calls for ever: each when it appears, and again when its last word changes."""

    def __init__(self, asker: Asker, wanted: Wanted, line: Callable[[Row], str]) -> None:
        self._asker = asker
        self._wanted = wanted
        self._line = line
        self._arrivals = Arrivals()
        self._said: OrderedDict[str, tuple[str, str, str]] = OrderedDict()

    def run(self, args: argparse.Namespace) -> int:
        """Until Ctrl-C, which is how it ends well. Raises PeerFault when the store is away at the beginning."""
        try:
            # what comes in between the two is in both, and printed once
            self._arrivals.begin(self._asker)
            if not args.json:
                print(aligned(HEAD), flush=True)
            self._tell(self._wanted.newest(self._asker, args.limit or (FOLLOW_LIMIT if args.since is None else LIMIT_MAX)))
            away = False
            while True:
                try:
                    more = self._step()
                except PeerFault as fault:
                    if not away:
                        print(f"wardline: {fault}; waiting for it", file=sys.stderr, flush=True)
                    away = True
                    time.sleep(AWAY_S)
                    continue
                if away:
                    print("wardline: the store answers again", file=sys.stderr, flush=True)
                away = False
                if not more:
                    time.sleep(POLL_S)
        except KeyboardInterrupt:
            return 0

    def _step(self) -> bool:
        """Print what is new; whether anything was."""
        frames = self._arrivals.look(self._asker)
        self._tell(self._wanted.of(self._asker, calls_in(self._asker, frames)))
        self._arrivals.done(frames)
        return bool(frames)

    def _tell(self, rows: Sequence[Row]) -> None:
        lines = []
        for row in rows:
            word = (row["verdict"], row["reason"], row["outcome"])
            if self._said.get(row["call_id"]) != word:
                self._said[row["call_id"]] = word
                lines.append(self._line(row))
            if len(self._said) > STATES_MAX:
                self._said.popitem(last=False)
        if lines:
            print("\n".join(lines), flush=True)


# -- for people ----------------------------------------------------------------------------------------------------------


def cells(row: Row) -> tuple[str, ...]:
    """A call as the cells of a line; nothing in them is printable yet."""
    return (
        shown_time(row["time"]), verdict_of(row), row["agent"] or "-", row["action"], place_of(row), ended_of(row),
        shown_size(row["bytes_out"]), shown_size(row["bytes_in"]), shown_span(row["duration_ms"]), row["call_id"],
    )  # fmt: skip


def verdict_of(row: Row) -> str:
    """`allow`, or `deny` and why; in a mode that does not enforce, with the mode."""
    said = "allow" if row["verdict"] == "allow" else f"deny {row['reason']}"
    return said if row["mode"] == "enforce" else f"{said} ({row['mode']})"


def place_of(row: Row) -> str:
    """Where it went: a destination with the path, or a tool."""
    return f"{named(row['resource'])}{row['path']}"


def ended_of(row: Row) -> str:
    """How it ended, `open` while it has not."""
    outcome = row["outcome"] or "open"
    return f"{outcome} {row['status']}" if row["status"] and outcome in ("ok", "error", "refused") else str(outcome)


def aligned(texts: Iterable[str]) -> str:
    """One line of `--follow`."""
    return "  ".join(printable(text).ljust(wide) for text, wide in zip(texts, WIDE, strict=True)).rstrip()


def line_of(row: Row) -> str:
    """A call as a line of `--follow`."""
    return aligned(cells(row))


def line_as_json(row: Row) -> str:
    """A call as a line of JSON."""
    return json.dumps(jsonable(row))
