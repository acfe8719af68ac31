"""`wardline findings`: what was noticed, and with `--follow` each finding as it comes and when it gets worse."""

import argparse
import json
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from pipeline.cli.asking import Asker, asking, jsonable, shown_time
from pipeline.cli.calls import AWAY_S, LIMIT, LIMIT_MAX, POLL_S, limit, since
from pipeline.cli.common import Commands, add_clickhouse, config_of, home_of, printable, table
from schemas.detectors import DETECTORS
from schemas.detectors import LIMIT as RULES
from schemas.errors import PeerFault

HEAD: Final = ("TIME", "SCORE", "SEVERITY", "DETECTOR", "AGENT", "WHAT", "FINDING")
WIDE: Final = (23, 5, 8, 13, 16, 60, 32)
"""Columns of `--follow`, in characters: a longer text moves what is behind it."""

FOLLOW_LIMIT: Final = 10
OVERLAP_S: Final = 30
"""How late a row may become visible behind another that was stored after it."""

STATES_MAX: Final = 100_000
"""Findings of which `--follow` remembers what it has printed."""

Row = dict[str, Any]

_BRIEF: Final = "id, time, score, severity, detector, agent, title, state, stored"
_NOW: Final = "SELECT now64(6) AS now"


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add `findings`."""
    text = "what detectors have noticed, or each finding as it comes"
    parser = commands.add_parser("findings", parents=[common], help=text, allow_abbrev=False)
    text = "print each finding when it appears, and again when its severity or state changes, until Ctrl-C"
    parser.add_argument("--follow", action="store_true", help=text)
    parser.add_argument("--agent", metavar="NAME", help="only about this agent")
    parser.add_argument("--detector", choices=(*DETECTORS, RULES), metavar="NAME", help=f"only of {', '.join(DETECTORS)}")
    text = "how long back, such as 90s, 30m, 1h, 7d, or from a time on, such as 2026-01-31T12:00:00Z"
    parser.add_argument("--since", type=since, metavar="TIME", help=text)
    text = "also those that somebody has called false, and those that an older call has taken back"
    parser.add_argument("--all", action="store_true", help=text)
    text = f"so many, the newest (default {LIMIT}, with --follow {FOLLOW_LIMIT} to begin with)"
    parser.add_argument("--limit", type=limit, metavar="N", help=text)
    parser.add_argument("--json", action="store_true", help="one JSON object a line, with every column of the view `findings`")
    add_clickhouse(parser)
    parser.set_defaults(run=run)


class Wanted:
    """Which findings are asked for: a condition on the view `findings`, its words apart from it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.parameters: dict[str, Any] = {}
        parts = [] if args.all else ["state = 'open'"]
        for name in ("agent", "detector"):
            if (given := getattr(args, name)) is not None:
                parts.append(f"{name} = {{{name}:String}}")
                self.parameters[name] = given
        self.where = " AND ".join(parts) or "1"
        self.from_when = "1" if args.since is None else f"time >= toDateTime64({args.since:.6f}, 6, 'UTC')"
        self.columns = "*" if args.json else _BRIEF

    def newest(self, asker: Asker, count: int) -> list[Row]:
        """The newest, oldest of them first."""
        rows = asker.rows(f"SELECT {self.columns} FROM findings WHERE {self.where} AND {self.from_when}"
                          f" ORDER BY time DESC, id DESC LIMIT {count}", **self.parameters)  # fmt: skip
        return rows[::-1]

    def stored(self, asker: Asker, after: datetime) -> list[Row]:
        """Those of which something was said behind a moment of the store's clock, in the order in which it was."""
        return asker.rows(f"SELECT {self.columns} FROM findings WHERE {self.where}"
                          f" AND stored > toDateTime64({after.timestamp() - OVERLAP_S:.6f}, 6, 'UTC') ORDER BY stored, id",
                          **self.parameters)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """`wardline findings`."""
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
        print("no finding is stored that fits" if args.all else "no finding is open that fits")
    return 0


class Follow:
    """Prints findings for ever."""

    def __init__(self, asker: Asker, wanted: Wanted, line: Callable[[Row], str]) -> None:
        self._asker = asker
        self._wanted = wanted
        self._line = line
        self._said: OrderedDict[str, tuple[str, str]] = OrderedDict()

    def run(self, args: argparse.Namespace) -> int:
        """Until Ctrl-C, which is how it ends well. Raises PeerFault when the store is away at the beginning."""
        try:
            seen: datetime = self._asker.rows(_NOW)[0]["now"]
            if not args.json:
                print(aligned(HEAD), flush=True)
            self._tell(self._wanted.newest(self._asker, args.limit or (FOLLOW_LIMIT if args.since is None else LIMIT_MAX)))
            away = False
            while True:
                time.sleep(POLL_S)
                try:
                    rows = self._wanted.stored(self._asker, seen)
                except PeerFault as fault:
                    if not away:
                        print(f"wardline: {fault}; waiting for it", file=sys.stderr, flush=True)
                    away = True
                    time.sleep(AWAY_S)
                    continue
                if away:
                    print("wardline: the store answers again", file=sys.stderr, flush=True)
                away = False
                seen = max([seen, *(row["stored"] for row in rows)])
                self._tell(rows)
        except KeyboardInterrupt:
            return 0

    def _tell(self, rows: Sequence[Row]) -> None:
        lines = []
        for row in rows:
            word = row["severity"], row["state"]
            if self._said.get(row["id"]) != word:
                self._said[row["id"]] = word
                lines.append(self._line(row))
            if len(self._said) > STATES_MAX:
                self._said.popitem(last=False)
        if lines:
            print("\n".join(lines), flush=True)


# -- for people ----------------------------------------------------------------------------------------------------------


def cells(row: Row) -> tuple[str, ...]:
    """A finding as the cells of a line; nothing in them is printable yet."""
    state = "" if row["state"] == "open" else f" ({row['state']})"
    return (
        shown_time(row["time"]), f"{row['score']:.0f}", row["severity"], row["detector"], row["agent"] or "-",
        f"{row['title']}{state}", row["id"],
    )  # fmt: skip


def aligned(texts: Iterable[str]) -> str:
    """One line of `--follow`."""
    return "  ".join(printable(text).ljust(wide) for text, wide in zip(texts, WIDE, strict=True)).rstrip()


def line_of(row: Row) -> str:
    """A finding as a line of `--follow`."""
    return aligned(cells(row))


def plain(row: Row) -> Row:
    """A finding as `json` takes it: what the store has as JSON in a text is an object."""
    return {**jsonable(row), "terms": json.loads(row["terms"]), "evidence": json.loads(row["evidence"])}


def line_as_json(row: Row) -> str:
    """A finding as a line of JSON."""
    return json.dumps(plain(row))
