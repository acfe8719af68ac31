"""`wardline explain`: everything that is known of one call, and what it means: who, for whom, by which policy and why.

It asks the store for the record, the frame that proves it, and what was revoked; the policies are looked for in this home by
the digest that the record names; the frame's signature is checked by the key that is pinned here, or that control registered.
"""

import argparse
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pipeline.cli.asking import Asker, asking, stamp
from pipeline.cli.calls import details
from pipeline.cli.common import Commands, add_clickhouse, config_of, home_of
from pipeline.cli.explained import Link, advice, asked_later, decided_after, policy_json, render
from pipeline.cli.policytext import policies_at
from pipeline.cli.status import STAGES
from schemas.errors import AgentFault, FrameFault, OperatorFault
from schemas.frame import SIGNATURE_BYTES, parse_frame
from schemas.home import Home
from schemas.keys import Trust
from schemas.layout import VERDICT_UNSAID
from schemas.limits import CHAIN_LINKS_MAX
from schemas.process import read_run_file
from schemas.records import Kind, Outcome, Verdict, addresses_of
from schemas.selectors import caller_texts, target_texts
from schemas.store import ENDED_US, ENDING
from schemas.vocabulary import action_uid

DIGITS_MIN: Final = 8
"""Hex digits of an id that name one call, if no other begins with them."""

DIGITS: Final = 32
_HALF: Final = 16
CANDIDATES_MAX: Final = 3
"""Ids that are named where one is not enough of an id."""

REPLAYED: Final = "replay"
"""The door of recorded calls. Any other sends calls upstream with a span of its own: the low halves of boot and seq."""

UNSEEN: Final = ("key", "issuer", "grant", "token")
"""Kinds of selector whose names a record does not carry, or not whole."""

REVOCATIONS_MAX: Final = 100_000


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add `explain`."""
    text = "who made a call, for whom, which policy decided it and why"
    parser = commands.add_parser("explain", parents=[common], help=text, allow_abbrev=False)
    text = f"its {DIGITS} hex digits, or the first {DIGITS_MIN} or more where no other call has them"
    parser.add_argument("call", metavar="CALL_ID", type=call_digits, help=text)
    parser.add_argument("--json", action="store_true", help="for programs")
    add_clickhouse(parser)
    parser.set_defaults(run=run)


def call_digits(text: str) -> str:
    """A call id, or its beginning."""
    digits = text.lower()
    if not re.fullmatch(rf"[0-9a-f]{{{DIGITS_MIN},{DIGITS}}}", digits):
        raise argparse.ArgumentTypeError(f"`{text}` is no call id: {DIGITS_MIN} to {DIGITS} hex digits")
    return digits


def run(args: argparse.Namespace) -> int:
    """`wardline explain`. Raises OperatorFault for an id that no stored call has, or more than one."""
    home = home_of(args)
    config = config_of(args, home)
    with asking(home, config) as asker:
        found = explain(asker, home, args.call)
    if args.json:
        print(json.dumps(found, default=stamp, indent=2))
    else:
        print(render(found))
    return 0


def explain(asker: Asker, home: Home, digits: str) -> dict[str, Any]:
    """Everything about the one call whose id begins with `digits`."""
    boot, seq = _find(asker, home, digits)
    (call,) = details(asker, [(boot, seq)])
    records = _records(asker, boot, seq)
    back = decided_after(records)
    epoch = int(back["epoch"]) if back is not None and back["epoch"] else int(call["epoch"])
    second = asked_later(back)
    action = second or str(call["action"])
    known = policies_at(home, str(call["policy_digest"])) if call["policy_digest"] else None
    links = _links(known.matcher(), call, action) if known is not None else []
    names = list(dict.fromkeys([*call["policies"], *(name for link in links for name in link.policies)]))
    stopped = call["verdict"] == "deny" and call["reason"] in ("revoked", "paused")
    revocations = _revocations(asker, call, epoch) if stopped and call["reason"] == "revoked" else []
    pause = _pause(asker, epoch) if stopped and call["reason"] == "paused" else None
    return {
        "call": call,
        "records": records,
        "asked_later": second,
        "epoch": epoch,
        "links": [dataclasses.asdict(link) for link in links],
        "policies": [policy_json(name, known.text(name) if known is not None else None) for name in names],
        "policies_source": known.source if known is not None else "",
        "policies_note": known.note if known is not None else "",
        "revocations": revocations,
        "pause": pause,
        "span": f"{boot & 0xFFFFFFFF:08x}{seq & 0xFFFFFFFF:08x}" if call["door"] != REPLAYED else "",
        "frame": _frame(asker, home, boot, seq),
        "advice": advice(call, action, links, [one for one in revocations if one["certain"]] or revocations, pause),
    }


# -- which call ----------------------------------------------------------------------------------------------------------


def _find(asker: Asker, home: Home, digits: str) -> tuple[int, int]:
    low, high = int(digits.ljust(DIGITS, "0"), 16), int(digits.ljust(DIGITS, "f"), 16)
    first, last = low >> 64, high >> 64
    where = f"boot BETWEEN {first} AND {last}"
    if len(digits) > _HALF:
        where = f"boot = {first} AND call_seq BETWEEN {low & (1 << 64) - 1} AND {high & (1 << 64) - 1}"
    rows = asker.rows(f"SELECT boot, call_seq AS seq FROM records WHERE {where} AND boot != 0 AND kind = {Kind.DECISION:d}"
                      f" ORDER BY boot, seq LIMIT {CANDIDATES_MAX + 1}")  # fmt: skip
    if not rows:
        raise OperatorFault(f"no call `{digits}` is in the store{_on_their_way(home)}")
    if len(rows) > 1:
        some = ", ".join(f"{row['boot']:016x}{row['seq']:016x}" for row in rows[:CANDIDATES_MAX])
        more = ", ..." if len(rows) > CANDIDATES_MAX else ""
        raise OperatorFault(f"`{digits}` is the beginning of several calls, give more of it: {some}{more}")
    return rows[0]["boot"], rows[0]["seq"]


def _on_their_way(home: Home) -> str:
    """Why a call may not be there yet, from what the hosts of this home say."""
    lag = dict.fromkeys(STAGES, 0)
    for path in sorted(home.run.glob("*.json")) if home.run.is_dir() else ():
        said = read_run_file(path)
        for figures in (said, *dict(said.get("adopted") or {}).values()) if said is not None and said["alive"] else ():
            for stage in STAGES:
                value = figures.get(stage)
                lag[stage] += value if isinstance(value, int) else 0
    waiting = lag["spooled"] - lag["stored"]
    if waiting > 0:
        return f" yet: {waiting} records are on their way (`wardline status`), try again"
    return "; if its door is on another machine it may be on its way: `wardline enforcer list` says how many records are"


# -- what was recorded ---------------------------------------------------------------------------------------------------


def _records(asker: Asker, boot: int, seq: int) -> list[dict[str, Any]]:
    """What was recorded of a call. `ended` is when it ended, of the record that says so; NULL of the others."""
    rows = asker.rows(
        "SELECT kind, seq, time, recorded, verdict, toString(reason) AS reason, outcome, status, error, bytes_out, bytes_in,"
        f" toString(address) AS address, epoch, if({ENDING}, fromUnixTimestamp64Micro({ENDED_US}, 'UTC'), NULL) AS ended"
        f" FROM records WHERE boot = {boot} AND call_seq = {seq}"
        f" AND kind BETWEEN {Kind.DECISION:d} AND {Kind.LOST:d} ORDER BY seq"
    )
    for row in rows:
        said = row["verdict"]
        address = row["address"]  # a decision's is its caller's; a whole one has what was dialled behind it
        row["client"], row["address"] = addresses_of(address) if row["kind"] == Kind.DECISION else ("", address)
        row["kind"] = Kind(row["kind"]).name.lower()
        row["outcome"] = Outcome(row["outcome"]).name.lower()
        row["verdict"] = "" if said == VERDICT_UNSAID else "allow" if said == Verdict.ALLOW else "deny"
    return rows


def _frame(asker: Asker, home: Home, boot: int, seq: int) -> dict[str, Any] | None:
    """The frame that brought the decision in, and whether its signature is its host's."""
    rows = asker.rows(
        "SELECT toString(f.enforcer) AS enforcer, f.call_seq AS enforcer_boot, f.partition AS partition, f.seq AS frame_no,"
        " lower(hex(f.frame_digest)) AS digest, toString(f.frame_flag) AS flag, lower(hex(f.frame_head)) AS head"
        " FROM records AS f WHERE f.boot = 0 AND f.kind = 0 AND (f.enforcer, f.call_seq, f.partition, f.seq) IN ("
        f"SELECT enforcer, enforcer_boot, partition, frame_no FROM records WHERE boot = {boot} AND call_seq = {seq}"
        f" AND kind = {Kind.DECISION:d}) ORDER BY f.frame_flag LIMIT 1"
    )
    if not rows:
        return None
    row = rows[0]
    head = bytes.fromhex(row.pop("head"))
    row["verified"], row["signature"] = _verified(asker, home, row, head, boot, seq)
    return row | {"enforcer_boot": f"{row['enforcer_boot']:016x}"}


def _verified(asker: Asker, home: Home, row: Mapping[str, Any], head: bytes, boot: int, seq: int) -> tuple[bool, str]:
    """Whether a frame's head is its host's own, is this frame's, and covers the record; and that in words."""
    try:
        said = parse_frame(head).head
    except FrameFault:
        return False, "NOT VERIFIED: its head is not kept"
    name = str(row["enforcer"])
    lane = (said.lane.host, said.lane.host_boot, said.lane.partition, said.frame_no)
    covers = [cut for cut in said.ranges if cut.boot == boot and cut.first <= seq <= cut.last]
    if lane != (name, row["enforcer_boot"], row["partition"], row["frame_no"]) or not covers:
        return False, "NOT VERIFIED: the head that is kept for it does not cover this record"
    if hashlib.sha256(head).hexdigest() != row["digest"]:
        return False, "NOT VERIFIED: its digest is not that of its head"
    signed, signature = head[:-SIGNATURE_BYTES], head[-SIGNATURE_BYTES:]
    keys = [("pinned in this home", check)] if (check := Trust(home.trusted("hosts")).verifier(name)) else []
    keys += [("that control registered", Ed25519PublicKey.from_public_bytes(raw).verify) for raw in _registered(asker, name)]
    for where, check in keys:
        try:
            check(signature, signed)
        except Exception:
            continue
        return True, f"signature good, by the key {where}; it covers records {covers[0].first} to {covers[0].last} of this door"
    return False, f"NOT VERIFIED: {'the signature is not' if keys else 'no key is known'} of host {name}"


def _registered(asker: Asker, name: str) -> list[bytes]:
    """The keys that control ever registered for a host, the last one first."""
    rows = asker.rows(
        "SELECT JSONExtractString(value, 'key') AS key FROM control FINAL WHERE kind = 'enforcer' AND name = {name:String}"
        " AND value != '' ORDER BY journal DESC, epoch DESC LIMIT 100", name=name,
    )  # fmt: skip
    return [bytes.fromhex(row["key"]) for row in rows if re.fullmatch(r"[0-9a-f]{64}", row["key"])]


# -- what was decided ----------------------------------------------------------------------------------------------------


def _links(matcher: Any, call: Mapping[str, Any], action: str) -> list[Link]:
    """What the policies of the call say of each agent of its chain; nothing where they were not asked, or are not here."""
    if matcher is None or call["reason"] not in ("permit", "forbid", "no-permit") or len(call["chain"]) > CHAIN_LINKS_MAX:
        return []
    found = []
    for uid in call["chain"]:
        if uid.startswith('Agent::"'):
            said = matcher.decide((uid,), action_uid(action), str(call["resource"]))
            verdict = "allow" if said.verdict is Verdict.ALLOW else "deny"
            found.append(Link(uid=uid, verdict=verdict, reason=said.reason, policies=said.because))
    return found


def _revocations(asker: Asker, call: Mapping[str, Any], epoch: int) -> list[dict[str, Any]]:
    """What was revoked by then and is true of the call; where nothing is, what may have been, since a record cannot say."""
    texts = set(_texts(call))
    rows = asker.rows(
        "SELECT selector, kind, name, toUInt8(cascade) AS cascade, state, reason, by, since, until, lifted_by, expires, epoch"
        f" FROM revocations WHERE epoch <= {epoch} AND (until IS NULL OR until >= fromUnixTimestamp64Micro("
        f"{int(call['recorded'].timestamp() * 1e6)})) ORDER BY epoch DESC LIMIT {REVOCATIONS_MAX}"
    )
    sure = [row | {"certain": True} for row in rows if row["selector"] in texts]
    return sure or [row | {"certain": False} for row in rows if row["kind"] in UNSEEN][:CANDIDATES_MAX]


def _texts(call: Mapping[str, Any]) -> Sequence[str]:
    texts: list[str] = []
    try:
        texts += caller_texts(call["chain"], session=call["session"], token=call["credential"])
        texts += target_texts(call["resource"], call["domain"])
    except AgentFault:
        pass  # a record whose uids are none: what could be read of it counts
    return texts


def _pause(asker: Asker, epoch: int) -> dict[str, Any] | None:
    rows = asker.rows(
        "SELECT JSONExtractString(value, 'reason') AS reason, toString(actor) AS by, time AS since, epoch FROM control FINAL"
        " WHERE kind = 'pause' AND value != '' AND journal = (SELECT max(journal) FROM control)"
        f" AND epoch <= {epoch} ORDER BY epoch DESC LIMIT 1"
    )
    return rows[0] if rows else None
