"""`wardline exceptions`: which findings count as false, by whom and until when; and the end of one before its time.

They are made from a finding: `wardline finding ID --false`.
"""

import argparse
import json
import time
from typing import Any

from pipeline.cli.common import Commands, add_group, clock, config_of, home_of, printable, table
from pipeline.cli.finding import digits
from pipeline.shells.controlclient import Control, name_of
from schemas.errors import OperatorFault


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add `exceptions` with its two commands."""
    inner, where = add_group(commands, common, "exceptions", "findings that count as false")
    listing = inner.add_parser("list", parents=[where], help="list them", allow_abbrev=False)
    listing.add_argument("--json", action="store_true", help="for programs")
    listing.set_defaults(run=run_list)
    remove = inner.add_parser("remove", parents=[where], help="end one: such findings count again", allow_abbrev=False)
    text = "of the exception, or of the finding that it was made from; or the beginning of it, where no other has that"
    remove.add_argument("name", metavar="ID", type=digits, help=text)
    remove.set_defaults(run=run_remove)


def _control(args: argparse.Namespace) -> Control:
    home = home_of(args)
    return Control(home, config_of(args, home))


def run_list(args: argparse.Namespace) -> int:
    """`wardline exceptions list`."""
    found = [_as_json(entry) for entry in _control(args).live("exception")]
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    now = time.time()
    rows = [
        (one["detector"], one["subject"], clock(one["since"]), _until(one, now), one["owner"], one["reason"], one["exception"])
        for one in found
    ]
    head = ("DETECTOR", "SUBJECT", "SINCE", "UNTIL", "OWNER", "REASON", "EXCEPTION")
    print(table(head, rows) if rows else "nothing is called false")
    return 0


def run_remove(args: argparse.Namespace) -> int:
    """`wardline exceptions remove`. Raises OperatorFault where the id names none, or more than one."""
    control = _control(args)
    found = [one for one in map(_as_json, control.live("exception"))
             if one["exception"].startswith(args.name) or one["finding"].startswith(args.name)]  # fmt: skip
    if len(found) != 1:
        raise OperatorFault(f"{'no exception has' if not found else f'{len(found)} exceptions have'} the id `{args.name}`")
    one = found[0]
    change = control.change("exception-remove", name=one["exception"])
    print(f"`{one['detector']}` of `{printable(one['subject'])}` counts again, epoch {change.epoch}")
    return 0


def _until(one: dict[str, Any], now: float) -> str:
    left = max(0, int(one["expires"] - now))
    return f"{clock(one['expires'])}, {left // 86_400} d {left % 86_400 // 3_600} h left"


def _as_json(entry: dict[str, Any]) -> dict[str, Any]:
    value = entry["value"]
    return {
        "exception": name_of(entry), "epoch": entry["epoch"], "detector": value["detector"], "subject": value["subject"],
        "since": entry["time_ns"] / 1e9, "expires": value["expires"], "owner": value["owner"], "by": entry["actor"],
        "reason": value["reason"], "finding": value["finding"],
    }  # fmt: skip
