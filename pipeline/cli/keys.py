"""`wardline key list | rotate | retire`: the keys that sign what control says.

Control makes a new key by itself and announces it by an entry that the old one signs, so both are believed from then on. The
old one goes when it is retired, behind everything that it had signed.
"""

import argparse
import json

from pipeline.cli.applied import add_waiting, report
from pipeline.cli.common import Commands, add_group, clock, config_of, home_of, table
from pipeline.shells.controlclient import Control, name_of


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add `key` with its three commands."""
    inner, where = add_group(commands, common, "key", "the keys that sign what control says")
    listing = inner.add_parser("list", parents=[where], help="list those that are believed", allow_abbrev=False)
    listing.add_argument("--json", action="store_true", help="for programs")
    listing.set_defaults(run=run_list)
    text = "sign with a new key; the old one stays believed"
    rotate = inner.add_parser("rotate", parents=[where], help=text, allow_abbrev=False)
    rotate.set_defaults(run=run_rotate)
    retire = inner.add_parser("retire", parents=[where], help="end an old key", allow_abbrev=False)
    retire.add_argument("key", metavar="KEYID", help="as `key list` shows it")
    retire.set_defaults(run=run_retire)
    for changing in (rotate, retire):
        add_waiting(changing)


def run_list(args: argparse.Namespace) -> int:
    """`wardline key list`."""
    control = Control(home := home_of(args), config_of(args, home))
    signs = control.ask("/status")["key"]
    found = [
        {"key": name_of(entry), "public": entry["value"]["public"], "signs": name_of(entry) == signs,
         "added": entry["time_ns"] / 1e9, "by": entry["actor"]}
        for entry in control.live("key")
    ]  # fmt: skip
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        rows = [(one["key"], "yes" if one["signs"] else "no", clock(one["added"]), one["by"]) for one in found]
        print(table(("KEY", "SIGNS", "ADDED", "BY"), rows))
    return 0


def run_rotate(args: argparse.Namespace) -> int:
    """`wardline key rotate`: 0 when every host believes the new key, else 1."""
    config = config_of(args, home := home_of(args))
    control = Control(home, config)
    change = control.change("key-rotate")
    return report(control, config, args, change, f"control signs with key {change.result['key']}")


def run_retire(args: argparse.Namespace) -> int:
    """`wardline key retire`: 0 when no host believes the old key any more, else 1."""
    config = config_of(args, home := home_of(args))
    control = Control(home, config)
    change = control.change("key-retire", key_id=args.key)
    return report(control, config, args, change, f"control key {args.key} has ended")
