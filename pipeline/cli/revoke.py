"""`wardline revoke`, `unrevoke` and `revocations`: what must be refused from now on, and who refuses it already."""

import argparse
import json
import re
import sys
import time
from datetime import UTC, datetime
from typing import Any, Final

from pipeline.cli.applied import add_waiting, report
from pipeline.cli.common import Commands, clock, config_of, home_of, table
from pipeline.shells.controlclient import Control
from schemas.errors import OperatorFault
from schemas.selectors import KINDS, Selector, make_selector

UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
FOR_MAX_S: Final = 10 * 365 * 86_400
_SPAN: Final = re.compile(r"(?:[0-9]{1,9}[smhdw])+")


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the three."""
    text = "refuse an agent, key, token, ... everywhere, at once, and cut its open tunnels"
    revoke = commands.add_parser("revoke", parents=[common], help=text, description=text, allow_abbrev=False)
    _add_selector(revoke)
    revoke.add_argument("--reason", required=True, metavar="TEXT", help="why, for whoever reads the audit")
    revoke.add_argument("--for", dest="span", type=span, default=0, metavar="TIME",
                        help="how long, such as 90s, 30m, 1h, 7d (default: until `unrevoke`)")  # fmt: skip
    revoke.add_argument("--not-before", type=moment, default=0, metavar="TIME",
                        help="only what was issued before this, such as 2026-01-31T12:00:00Z")  # fmt: skip
    revoke.set_defaults(run=run_revoke)

    unrevoke = commands.add_parser("unrevoke", parents=[common], help="end a revocation", allow_abbrev=False)
    _add_selector(unrevoke)
    unrevoke.set_defaults(run=run_unrevoke)
    for parser in (revoke, unrevoke):
        add_waiting(parser)

    listing = commands.add_parser("revocations", parents=[common], help="list what is revoked", allow_abbrev=False)
    listing.add_argument("--json", action="store_true", help="for programs")
    listing.set_defaults(run=run_revocations)


def _add_selector(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help=f"{', '.join(KINDS)}")
    parser.add_argument("name", metavar="NAME", help="which; of a token its SHA-256, or `-` to read the token from stdin")
    text = "an agent or principal at any position of a chain, not only the one that acts"
    parser.add_argument("--cascade", action="store_true", help=text)


def span(text: str) -> int:
    """Seconds of `1h30m`."""
    if _SPAN.fullmatch(text):
        total = sum(int(number) * UNITS[unit] for number, unit in re.findall(r"([0-9]+)([smhdw])", text))
        if 0 < total <= FOR_MAX_S:
            return total
    raise argparse.ArgumentTypeError(f"`{text}` is not a time such as 90s, 30m, 1h or 7d, 10 years at most")


def moment(text: str) -> int:
    """Seconds since 1970 of an ISO 8601 time, UTC where it says nothing else."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError as fault:
        raise argparse.ArgumentTypeError(f"`{text}` is not a time such as 2026-01-31T12:00:00Z") from fault
    value = int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())
    if value <= 0:
        raise argparse.ArgumentTypeError(f"`{text}` is not a time behind 1970")
    return value


def _selector(args: argparse.Namespace) -> Selector:
    name = args.name
    if args.kind == "token" and name == "-":
        name = sys.stdin.readline().rstrip("\r\n")
        if not name:
            raise OperatorFault("no token came from stdin")
    # a token is hashed here: it leaves this process for nobody
    return make_selector(args.kind, name, cascade=args.cascade)


def run_revoke(args: argparse.Namespace) -> int:
    """`wardline revoke`: 0 when every door obeys, else 1 with the names of those that do not yet."""
    selector = _selector(args)
    config = config_of(args, home := home_of(args))
    control = Control(home, config)
    change = control.change(
        "revoke", kind=selector.kind, name=selector.name, cascade=selector.cascade, reason=args.reason, for_s=args.span,
        not_before_s=args.not_before,
    )  # fmt: skip
    return report(control, config, args, change, f"revoked {_shown(selector)}")


def run_unrevoke(args: argparse.Namespace) -> int:
    """`wardline unrevoke`."""
    selector = _selector(args)
    config = config_of(args, home := home_of(args))
    control = Control(home, config)
    change = control.change("unrevoke", kind=selector.kind, name=selector.name, cascade=selector.cascade)
    return report(control, config, args, change, f"no longer revoked: {_shown(selector)}")


def _shown(selector: Selector) -> str:
    return f"{selector.kind} `{selector.name}`{' anywhere in a chain' if '*' in selector.text.partition(':')[0] else ''}"


def run_revocations(args: argparse.Namespace) -> int:
    """`wardline revocations`: those that are in force."""
    control = Control(home := home_of(args), config_of(args, home))
    found = [_as_json(entry) for entry in control.live("revocation")]
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    now = time.time()
    rows = [
        (one["kind"] + ("*" if one["cascade"] else ""), one["name"], clock(one["since"]), _until(one, now), one["by"],
         one["reason"])
        for one in found
    ]  # fmt: skip
    print(table(("KIND", "NAME", "SINCE", "UNTIL", "BY", "REASON"), rows) if rows else "nothing is revoked")
    return 0


def _until(one: dict[str, Any], now: float) -> str:
    issued = f" (issued before {clock(one['not_before'])})" if one["not_before"] else ""
    if not one["expires"]:
        return f"unrevoked{issued}"
    left = max(0, int(one["expires"] - now))
    return f"{clock(one['expires'])}, {left} s left{issued}"


def _as_json(entry: dict[str, Any]) -> dict[str, Any]:
    value = entry["value"]
    return {
        "epoch": entry["epoch"], "kind": value["kind"], "name": value["name"], "cascade": value["cascade"],
        "since": entry["time_ns"] / 1e9, "expires": value["expires"], "not_before": value["not_before"], "by": entry["actor"],
        "reason": value["reason"],
    }  # fmt: skip
