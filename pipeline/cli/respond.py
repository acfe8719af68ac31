"""`wardline respond`: what the rules of `wardline.toml` did about findings, and with `--dry-run` what they would have done."""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from pipeline.cli.asking import Asker, asking, jsonable, shown_span, shown_time, stamp
from pipeline.cli.calls import LIMIT_MAX, details, since
from pipeline.cli.common import Commands, add_clickhouse, config_of, home_of, printable, table
from pipeline.core.respond import EXCEPTED, FAILED, LATE, LIMITED, REVOKED, STANDING, Response, about, rehearse
from schemas.config import Respond
from schemas.detectors import LIMIT, ROOT
from schemas.errors import OperatorFault
from schemas.findings import Finding, parse_finding

HEAD: Final = ("TIME", "RULE", "STATE", "SELECTOR", "FOR", "FINDING", "WHAT")
WOULD: Final = {REVOKED: "revoke", STANDING: "already", LIMITED: "LIMITED", EXCEPTED: "excepted", FAILED: "fail"}
"""What a rule would have done, in a word."""

Row = dict[str, Any]


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add `respond`."""
    text = "what the rules of wardline.toml did about findings, or would have done"
    parser = commands.add_parser("respond", parents=[common], help=text, description=text, allow_abbrev=False)
    text = "try the rules as they are now on findings that are stored; nothing is revoked"
    parser.add_argument("--dry-run", action="store_true", help=text)
    text = "how long back, such as 90s, 1h, 7d, or from a time on, such as 2026-01-31T12:00:00Z (default: everything stored)"
    parser.add_argument("--since", type=since, metavar="TIME", help=text)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    add_clickhouse(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """`wardline respond`. Raises OperatorFault where there is no rule to try."""
    home = home_of(args)
    config = config_of(args, home)
    if args.dry_run and not config.respond:
        raise OperatorFault(f"{home.config}: has no [[respond]]: findings only alert")
    from_when = "1" if args.since is None else f"time >= toDateTime64({args.since:.6f}, 6, 'UTC')"
    with asking(home, config) as asker:
        if not args.dry_run:
            return show(args, config.respond, asker.rows(f"SELECT * FROM responses WHERE {from_when} ORDER BY time, rule"))
        found, false = stored(asker, from_when)
        roots = roots_of(asker, config.respond, found)
    said = rehearse(config.respond, found, exceptions=false, roots=roots)
    if args.json:
        for finding, response in said:
            print(json.dumps(_as_json(finding, response)))
        return 0
    if said:
        print(table(HEAD, (_cells(finding, response) for finding, response in said)))
        print()
    print("\n".join(summary(config.respond, found, said)))
    return 0


def stored(asker: Asker, from_when: str) -> tuple[list[Finding], set[tuple[str, str]]]:
    """The findings that are stored, and (detector, subject) of those that count as false. Raises OperatorFault for too many."""
    rows = asker.rows(f"SELECT * FROM findings WHERE {from_when} AND state != 'withdrawn' ORDER BY time LIMIT {LIMIT_MAX + 1}")
    if len(rows) > LIMIT_MAX:
        raise OperatorFault(f"more than {LIMIT_MAX} findings are stored in this time; ask for a shorter one with --since")
    false = {(row["detector"], row["subject"]) for row in rows if row["state"] == "false"}
    return [parse_finding(row) for row in rows if row["detector"] != LIMIT], false


def roots_of(asker: Asker, rules: Sequence[Respond], findings: Sequence[Finding]) -> dict[str, list[str]]:
    """Finding -> the roots of its calls, where a rule revokes one."""
    found: dict[str, list[str]] = {}
    for one in findings:
        if any(rule.revoke == ROOT and about(rule, one) for rule in rules):
            keys = [(int(call[:16], 16), int(call[16:], 16)) for call in one.calls]
            found[one.id] = sorted({call["root"] for call in details(asker, keys) if call["root"]})
    return found


def show(args: argparse.Namespace, rules: Sequence[Respond], rows: Sequence[Row]) -> int:
    """What was done."""
    if args.json:
        for row in rows:
            print(json.dumps(jsonable(row)))
        return 0
    told = [row for row in rows if row["state"] != LATE]
    if told:
        print(table(HEAD, ((shown_time(row["time"]), row["rule"], row["state"], row["selector"] or "-", _for(row["for_s"]),
                            row["finding"], row["why"]) for row in told)))  # fmt: skip
    else:
        print("no rule has done anything")
    if len(told) < len(rows):
        print(f"{len(rows) - len(told)} findings were over when they were found (late)")
    if not rules:
        print("there is no [[respond]] in wardline.toml: findings only alert")
    return 0


def summary(rules: Sequence[Respond], findings: Sequence[Finding], said: Sequence[tuple[Finding, Response]]) -> list[str]:
    """A line for each rule, and what it all is worth."""
    lines = [f"{len(findings)} findings; nothing was revoked now, this is what each rule would have done:"]
    for rule in rules:
        states = Counter(response.state for _, response in said if response.rule == rule.name)
        many = len({response.selector for _, response in said if (response.rule, response.state) == (rule.name, REVOKED)})
        words = [f"{states[REVOKED]} revocations of {many} {rule.revoke}s, {shown_span(rule.for_s * 1e3)} each"]
        limit = f"stopped by its limit of {rule.limit} in {shown_span(rule.limit_s * 1e3)}"
        others = (STANDING, "revoked already"), (LIMITED, limit), (EXCEPTED, "called false"), (FAILED, "that cannot be revoked")
        words += [f"{states[state]} {text}" for state, text in others if states[state]]
        lines.append(f"  rule `{printable(rule.name)}`: {', '.join(words)}")
    return lines


def _for(seconds: int) -> str:
    return shown_span(seconds * 1e3) if seconds else "-"


def _cells(finding: Finding, response: Response) -> tuple[str, ...]:
    what = finding.title if response.state in (REVOKED, STANDING) else response.why
    return (
        shown_time(_time(response.time_us)), response.rule, WOULD.get(response.state, response.state), response.selector or "-",
        _for(response.for_s), finding.id, what,
    )  # fmt: skip


def _as_json(finding: Finding, response: Response) -> Row:
    return {
        "time": stamp(_time(response.time_us)), "rule": response.rule, "would": WOULD.get(response.state, response.state),
        "selector": response.selector, "for_s": response.for_s, "finding": finding.id, "detector": finding.detector,
        "score": finding.score, "title": finding.title, "why": response.why,
    }  # fmt: skip


def _time(us: int) -> datetime:
    return datetime.fromtimestamp(us / 1e6, UTC)
