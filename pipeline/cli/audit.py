"""`wardline audit control`: every change that was ever made, by whom and when, in the order of the journal."""

import argparse
import json
from typing import Any

from pipeline.cli.common import Commands, add_group, clock, config_of, home_of, table
from pipeline.shells.controlclient import PAGE, Control


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add `audit` with its one command."""
    inner, where = add_group(commands, common, "audit", "who changed what, and when")
    control = inner.add_parser("control", parents=[where], help="the journal of control, oldest first", allow_abbrev=False)
    control.add_argument("--after", type=whole, default=0, metavar="EPOCH", help="only what came behind this epoch (default 0)")
    control.add_argument("--limit", type=whole, default=0, metavar="N", help="so many at most (default 0: all)")
    control.add_argument("--json", action="store_true", help="one JSON object a line")
    control.set_defaults(run=run_control)


def whole(text: str) -> int:
    """A number from 0."""
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"`{text}` is not a whole number")
    return int(text)


def run_control(args: argparse.Namespace) -> int:
    """`wardline audit control`."""
    control = Control(home := home_of(args), config_of(args, home))
    after, left = args.after, args.limit or None
    while left is None or left > 0:
        wanted = PAGE if left is None else min(PAGE, left)
        entries = control.audit(after, wanted)
        if not entries:
            break
        if args.json:
            print("\n".join(json.dumps(_as_json(entry)) for entry in entries))
        else:
            text = table(("EPOCH", "TIME", "BY", "KEY", "VALUE"), [_row(entry) for entry in entries])
            print(text if after == args.after else text.partition("\n")[2])
        after, left = entries[-1]["epoch"], None if left is None else left - len(entries)
    return 0


def _as_json(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "epoch": entry["epoch"], "time": entry["time_ns"] / 1e9, "actor": entry["actor"], "key": entry["key"],
        "value": entry["value"],
    }  # fmt: skip


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    value = entry["value"]
    said = "removed" if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return str(entry["epoch"]), clock(entry["time_ns"] / 1e9), entry["actor"], entry["key"], said
