"""`wardline finding`: what one finding says term by term, the calls behind it, what was done about it and who obeyed when.

With `--false` it teaches an exception: control keeps it, with an owner and an end, and what the finding had revoked is lifted.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from pipeline.cli.applied import labels_of
from pipeline.cli.asking import Asker, asking, jsonable, shown_span, shown_time, stamp
from pipeline.cli.calls import HEAD, cells, details
from pipeline.cli.common import Commands, add_clickhouse, clock, config_of, home_of, home_words, printable, table
from pipeline.cli.findings import plain
from pipeline.cli.revoke import span
from pipeline.core.requests import EXCEPTION_S_MAX
from pipeline.core.respond import REVOKED, STANDING
from pipeline.shells.controlclient import Control
from schemas.detectors import LIMIT
from schemas.errors import OperatorFault
from schemas.findings import SCORE_MAX
from schemas.home import Home
from schemas.store import quote_text

DIGITS_MIN: Final = 8
DIGITS: Final = 32
SHOWN_MAX: Final = 20
"""Calls that a person is shown; `--json` has all that the finding names."""

CANDIDATES_MAX: Final = 3

Row = dict[str, Any]


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add `finding`."""
    text = "one finding: its score term by term, its evidence and calls, what was done; or call it false"
    parser = commands.add_parser("finding", parents=[common], help=text, allow_abbrev=False)
    text = f"its {DIGITS} hex digits, or the first {DIGITS_MIN} or more where no other finding has them"
    parser.add_argument("finding", metavar="ID", type=digits, help=text)
    parser.add_argument("--json", action="store_true", help="for programs")
    text = "it is a false alarm: say so of its detector and subject, and lift what was revoked for it; needs --owner and --for"
    parser.add_argument("--false", dest="wrong", action="store_true", help=text)
    parser.add_argument("--owner", metavar="WHO", help="with --false: who answers for saying so")
    text = f"with --false: how long it holds, such as 12h or 30d, {EXCEPTION_S_MAX // 86_400} days at most"
    parser.add_argument("--for", dest="span", type=span, metavar="TIME", help=text)
    parser.add_argument("--reason", metavar="TEXT", default="", help="with --false: why, for whoever reads the audit")
    add_clickhouse(parser)
    parser.set_defaults(run=run)


def digits(text: str) -> str:
    """The id of a finding or exception, or its beginning."""
    found = text.lower()
    if not re.fullmatch(rf"[0-9a-f]{{{DIGITS_MIN},{DIGITS}}}", found):
        raise argparse.ArgumentTypeError(f"`{text}` is no id: {DIGITS_MIN} to {DIGITS} hex digits")
    return found


def run(args: argparse.Namespace) -> int:
    """`wardline finding`. Raises OperatorFault for an id that no stored finding has, or more than one."""
    home = home_of(args)
    config = config_of(args, home)
    if not args.wrong and (args.owner is not None or args.span is not None or args.reason):
        raise OperatorFault("--owner, --for and --reason belong to --false")
    with asking(home, config) as asker:
        row = find(asker, args.finding)
        if args.wrong:
            return call_false(args, home, Control(home, config), row, responses_to(asker, row["id"]))
        told = tell(asker, row)
    if args.json:
        print(json.dumps(as_json(told), indent=2, default=stamp))
    else:
        print(render(told, labels_of(home), home_words(home)))
    return 0


def find(asker: Asker, beginning: str) -> Row:
    """The finding whose id begins so."""
    rows = asker.rows(f"SELECT * FROM findings WHERE startsWith(id, {quote_text(beginning)}) LIMIT {CANDIDATES_MAX + 1}")
    if len(rows) == 1:
        return rows[0]
    if not rows:
        raise OperatorFault(f"no stored finding has the id `{beginning}`")
    named = ", ".join([row["id"] for row in rows[:CANDIDATES_MAX]] + ["..."] * (len(rows) > CANDIDATES_MAX))
    raise OperatorFault(f"more than one finding begins with `{beginning}`: {named}")


def responses_to(asker: Asker, finding: str) -> list[Row]:
    """What rules did about a finding, in order."""
    return asker.rows(f"SELECT * FROM responses WHERE finding = {quote_text(finding)} ORDER BY time, rule")


def tell(asker: Asker, row: Row) -> Row:
    """All that is known of a finding: `finding`, `calls` and `responses`, each of these with its revocation and who obeyed."""
    keys = [(int(one[:16], 16), int(one[16:], 16)) for one in row["calls"]]
    calls = sorted(details(asker, keys), key=lambda call: (call["time"], call["boot"], call["seq"]))
    answers = [answer | _in_force(asker, answer, row) for answer in responses_to(asker, row["id"])]
    return {"finding": row, "calls": calls, "responses": answers}


def _in_force(asker: Asker, answer: Row, finding: Row) -> Row:
    """The revocation of a response, the doors that lived then, and when each obeyed.

    A host stands for itself while it has no door. `ms` is from the revocation on, `from_call_ms` from the call that crossed the
    threshold to refusal at the last door; both by the machines' own clocks.
    """
    none: Row = {"revocation": None, "acknowledged": [], "waiting": 0, "from_call_ms": None}
    if answer["state"] not in (REVOKED, STANDING):
        return none
    epoch = int(answer["epoch"])
    # by its epoch alone: an agent that was revoked already may be so at every position, which is another selector
    found = asker.rows(f"SELECT * FROM revocations WHERE epoch = {epoch}")
    doors = asker.rows(
        "SELECT host, door, minIf(applied, epoch >= {epoch:UInt64}) AS applied, max(epoch) >= {epoch:UInt64} AS obeys,"
        " countIf(last) > 0 AS lives FROM acks WHERE epoch > 0 AND state IN ('ready', 'stale') AND (door != '' OR doors = 0)"
        " GROUP BY host, host_boot, door HAVING countIf(epoch < {epoch:UInt64}) > 0 ORDER BY host, applied", epoch=epoch,
    )  # fmt: skip
    if not found:
        return none
    since: datetime = found[0]["since"]
    obeyed = [
        {"host": one["host"], "door": one["door"], "applied": one["applied"], "ms": _ms(since, one["applied"])}
        for one in doors if one["obeys"]
    ]  # fmt: skip
    waiting = sum(1 for one in doors if not one["obeys"] and one["lives"])
    last = max((one["applied"] for one in obeyed), default=None)
    through = _ms(finding["time"], last) if last is not None and not waiting else None
    return {"revocation": found[0], "acknowledged": obeyed, "waiting": waiting, "from_call_ms": through}


def _ms(first: datetime, then: datetime) -> float:
    # two machines' clocks: nothing is shown as done before it was said
    return max(0.0, (then - first).total_seconds() * 1e3)


def as_json(told: Row) -> Row:
    """What `tell` found as `json` takes it."""
    answers = []
    for answer in told["responses"]:
        held = answer["revocation"]
        answers.append({**jsonable(answer), "revocation": None if held is None else jsonable(held),
                        "acknowledged": [jsonable(one) for one in answer["acknowledged"]]})  # fmt: skip
    return {**plain(told["finding"]), "responses": answers, "named_calls": [jsonable(call) for call in told["calls"]]}


# -- for people ----------------------------------------------------------------------------------------------------------


def render(told: Row, labels: Mapping[str, str], where: str) -> str:
    """All of it. `labels` are doors' names by their boots, `where` names the home in a command to copy."""
    row = told["finding"]
    lines = [
        printable(row["title"]),
        f"{row['detector']} finding {row['id']}, score {row['score']:g} ({row['severity']}), {row['state']}", "",
        *_facts(row), "",
        "score", *_terms(json.loads(row["terms"])), "", "evidence", *_evidence(json.loads(row["evidence"])), "",
        *_calls(row, told["calls"]), "", "all calls behind it", f"  {printable(row['sql'])}", "", "what was done",
    ]  # fmt: skip
    for answer in told["responses"]:
        lines += _answer(answer, labels)
    if not told["responses"]:
        lines.append("  nothing: no rule is about it, or it was found before there was one")
    if row["state"] == "open" and row["detector"] != LIMIT:
        lines += ["", f"a false alarm?  wardline finding {row['id']} --false --owner YOU --for 30d{where}"]
    return "\n".join(lines)


def _facts(row: Row) -> list[str]:
    facts = [
        ("about", row["subject"]), ("agent", row["agent"]), ("destination", row["domain"] or row["host"]),
        ("credential", row["credential"]), ("session", row["session"]), ("enforcer", row["enforcer"]),
        ("seen", f"{shown_time(row['started'])} to {shown_time(row['ended'])}"), ("crossed", shown_time(row["time"])),
        ("found", f"{shown_time(row['stored'])}, by {row['worker']}, version {row['version']}"),
    ]  # fmt: skip
    return [f"  {label:11}  {printable(text)}" for label, text in facts if text]


def _terms(terms: Sequence[Mapping[str, Any]]) -> list[str]:
    wide = max((len(printable(str(term["name"]))) for term in terms), default=0)
    lines = []
    for term in terms:
        name, value, points = printable(str(term["name"])), float(term["value"]), float(term["points"])
        lines.append(f"  {points:+8.1f}  {name:{wide}}  {value:<12g}  {printable(term['why'])}".rstrip())
    total = sum(float(term["points"]) for term in terms)
    capped = "" if 0 <= total <= SCORE_MAX else f", within 0 and {SCORE_MAX:g}"
    return [*lines, f"  {total:8.1f}  in all{capped}"]


def _evidence(evidence: Mapping[str, Any]) -> list[str]:
    wide = max((len(printable(name)) for name in evidence), default=0)
    return [
        f"  {printable(name):{wide}}  {printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))}"
        for name, value in evidence.items()
    ]


def _calls(row: Row, calls: Sequence[Row]) -> list[str]:
    head = f"calls: {row['calls_count']}, {len(row['calls'])} of them named"
    if len(calls) > SHOWN_MAX:
        head += f", the last {SHOWN_MAX} shown"
    lines = table(HEAD, map(cells, calls[-SHOWN_MAX:])).splitlines() if calls else ["none of them is stored any more"]
    return [head, *(f"  {line}" for line in lines)]


def _answer(answer: Row, labels: Mapping[str, str]) -> list[str]:
    rule, state, selector = answer["rule"], answer["state"], printable(answer["selector"])
    if state not in (REVOKED, STANDING):
        return [f"  {shown_time(answer['time'])}  rule `{rule}`: {state}: {printable(answer['why'])}"]
    lasts = f"for {shown_span(answer['for_s'] * 1e3)}" if answer["for_s"] else "without end"
    said = f"revoked `{selector}` as epoch {answer['epoch']}, {lasts}"
    if state == STANDING:
        said = f"`{selector}` was revoked already, as epoch {answer['epoch']}, still {lasts}"
    lines = [f"  {shown_time(answer['time'])}  rule `{rule}`: {said}"]
    held = answer["revocation"]
    if held is not None:
        until = f" {shown_time(held['until'])}" if held["until"] else ""
        lines.append(f"    in force since {shown_time(held['since'])}, {held['state']}{until}")
    for one in answer["acknowledged"]:
        name = f"{one['host']} {labels.get(one['door'], 'door ' + one['door'])}" if one["door"] else one["host"]
        lines.append(f"    {printable(name)} obeyed {shown_span(one['ms'])} later")
    if answer["waiting"]:
        lines.append(f"    {answer['waiting']} have NOT ACKNOWLEDGED it")
    if answer["from_call_ms"] is not None and state == REVOKED:
        took = shown_span(answer["from_call_ms"])
        lines.append(f"    from the call that crossed the threshold to refusal at every door: {took}")
    return lines


# -- false alarms --------------------------------------------------------------------------------------------------------


def call_false(args: argparse.Namespace, home: Home, control: Control, row: Row, answers: Sequence[Row]) -> int:
    """Teach the exception, then lift what stands for this finding. A crash in between leaves the exception: say it again."""
    for name, given in (("--owner", args.owner), ("--for", args.span)):
        if not given:
            raise OperatorFault(f"--false needs {name}: an exception has an owner and an end")
    if row["detector"] == LIMIT:
        raise OperatorFault("that a rule has reached its limit is no alarm of a detector: change the rule in wardline.toml")
    change = control.change(
        "exception-add", finding=row["id"], detector=row["detector"], subject=row["subject"], owner=args.owner,
        reason=args.reason, for_s=args.span,
    )  # fmt: skip
    lifted = [one["selector"] for one in answers if one["state"] == REVOKED and _lift(control, one)]
    result = change.result
    if args.json:
        print(json.dumps({"epoch": change.epoch, **result, "lifted": lifted}, indent=2))
        return 0
    print(f"`{row['detector']}` of `{printable(row['subject'])}` counts as false until {clock(result['expires'])}, "
          f"epoch {change.epoch}; owner {printable(args.owner)}")  # fmt: skip
    for selector in lifted:
        print(f"no longer revoked: {printable(selector)}")
    print(f"end it earlier: wardline exceptions remove {result['exception']}{home_words(home)}")
    return 0


def _lift(control: Control, answer: Row) -> bool:
    """End a revocation that is still the one that was made for the finding; what somebody else made of it since stays."""
    key, epoch = f"revocation/{answer['selector']}", int(answer["epoch"])
    said = control.audit(epoch - 1, 2, key)
    if [one["epoch"] for one in said] != [epoch] or said[0]["value"] is None:
        return False
    value = said[0]["value"]
    control.change("unrevoke", kind=value["kind"], name=value["name"], cascade=value["cascade"])
    return True
