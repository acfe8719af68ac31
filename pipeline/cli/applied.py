"""Who has applied a change, and who has not in time: what `revoke`, `pause` and whatever else must be obeyed prints."""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pipeline.cli.common import home_of
from pipeline.cli.doors import living_doors
from pipeline.shells.controlclient import POLL_S, SETTLE_S, Change, Control, Unsettled
from schemas.config import Config
from schemas.errors import PeerFault
from schemas.home import Home

NS_PER_MS: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One door, or a host that has none and answers for itself, and how far it is."""

    host: str
    door: str
    """The boot of a door; empty for a host that has none."""
    label: str
    """What the door is called (`door-1`), where it runs under this home; else its boot."""
    epoch: int
    policy_digest: str
    applied_ns: int
    """When it began to obey `epoch` and decide by `policy_digest`, by its own clock, nanoseconds since 1970."""
    since_ns: int
    """When it began to decide by `policy_digest`, as far as control has heard."""
    why: str
    """What its host says is in the way; empty when it is ready."""

    @property
    def name(self) -> str:
        """How a sentence names it."""
        return f"{self.host} {self.label}" if self.door else self.host

    def has(self, epoch: int, digest: str) -> bool:
        """Whether it has applied a change; `digest` is empty where the change is no policy."""
        return self.epoch >= epoch and digest in ("", self.policy_digest)


def labels_of(home: Home) -> dict[str, str]:
    """The names of the doors that run under a home, by their boots."""
    return {str(said.get("boot")): name for name, said in living_doors(home)}


def standings(host: Mapping[str, Any], labels: Mapping[str, str]) -> list[Standing]:
    """A host as control knows it, by its doors; `labels` are the names of those that run here, by their boots."""
    why = str(host["why"] or ("" if host["state"] == "ready" else host["state"]))
    own = [{"boot": "", **{key: host[key] for key in ("epoch", "policy_digest", "applied_ns", "policy_since_ns")}}]
    return [
        Standing(host=host["host"], door=door["boot"], label=labels.get(door["boot"], f"door {door['boot']}"),
                 epoch=door["epoch"], policy_digest=door["policy_digest"], applied_ns=door["applied_ns"],
                 since_ns=door["policy_since_ns"], why=why)
        for door in host["doors"] or own
    ]  # fmt: skip


def add_waiting(parser: argparse.ArgumentParser) -> None:
    """`--timeout` and `--json`, for commands that wait until everybody obeys."""
    text = "how long all doors may take to obey; then exit code 1 (default: control.ack_s)"
    parser.add_argument("--timeout", type=timeout, metavar="SECONDS", help=text)
    parser.add_argument("--json", action="store_true", help="for programs")


def timeout(text: str) -> float:
    """A number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 600:
        raise argparse.ArgumentTypeError(f"`{text}` is not a number of seconds, above 0 to 600")
    return value


def report(
    control: Control, config: Config, args: argparse.Namespace, change: Change, said: str, *, digest: str = ""
) -> int:
    """Wait until all doors of all expected hosts have applied a change, and print it; 0 when they have, else 1.

    `said` is what was done, in one line; `digest` names the policies that doors must decide by where the change is one.
    """
    if not args.json:
        print(f"{said} as epoch {change.epoch}", flush=True)
    limit_s = args.timeout or float(config.control.ack_s)
    made_ns, hosts = _ask(control, change.epoch, digest, limit_s)
    labels = labels_of(home_of(args))
    doors = [door for host in hosts if host["expected"] for door in standings(host, labels)]
    late = [door for door in doors if not door.has(change.epoch, digest)]
    if args.json:
        shown = [_as_json(door, change, digest, made_ns) for door in doors]
        print(json.dumps({"epoch": change.epoch, "said": said, "acknowledged": not late, "doors": shown}, indent=2))
    else:
        wide = max((len(door.name) for door in doors), default=0)
        for door in doors:
            print(f"  {door.name:{wide}}  {_told(door, change, digest, made_ns)}")
        if not doors:
            print("  no enforcer runs: one that starts obeys before its first call")
    if late:
        names = ", ".join(door.name for door in late)
        print(f"wardline: not acknowledged within {limit_s:g} s: {names}", file=sys.stderr)
    return int(bool(late))


def _ask(control: Control, epoch: int, digest: str, limit_s: float) -> tuple[int, list[dict[str, Any]]]:
    """When a change was made, and the hosts once all obey, or after `limit_s`; asked again while control is started again."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        try:
            made_ns = int(control.audit(epoch - 1, 1)[0]["time_ns"])
            return made_ns, control.ask("/acks", epoch=epoch, policy=digest, wait_s=limit_s)["hosts"]
        except PeerFault as fault:
            if time.monotonic() > deadline:
                raise Unsettled(f"{fault}; epoch {epoch} is in force, who obeys it already is unknown") from fault
            time.sleep(POLL_S)


def _ms(door: Standing, made_ns: int) -> float:
    # two machines' clocks: what was applied is never shown as applied before it was said
    return max(0.0, (door.applied_ns - made_ns) / NS_PER_MS)


def _told(door: Standing, change: Change, digest: str, made_ns: int) -> str:
    if door.has(change.epoch, digest):
        return f"{_ms(door, made_ns):.0f} ms"
    behind = f"at epoch {door.epoch}" if door.epoch < change.epoch else f"decides by {door.policy_digest[:12] or 'no policy'}"
    return f"NOT ACKNOWLEDGED, {behind}{f': {door.why}' if door.why else ''}"


def _as_json(door: Standing, change: Change, digest: str, made_ns: int) -> dict[str, Any]:
    done = door.has(change.epoch, digest)
    return {
        "host": door.host, "door": door.door, "name": door.name, "epoch": door.epoch, "policy_digest": door.policy_digest,
        "acknowledged": done,
        "ms": round(_ms(door, made_ns), 3) if done else None, "why": door.why,
    }  # fmt: skip
