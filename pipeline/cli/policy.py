"""`wardline policy check` and `test`: policies before they decide anything, by the enforcer's own matcher. `status` and
`rollback`: those that are in force, at which door, and back to the ones before.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from enforcers.core.chain import make_chain
from ext.decide import Matcher
from pipeline.cli.applied import Standing, add_waiting, labels_of, report, standings
from pipeline.cli.common import Commands, add_group, clock, config_of, home_of, table
from pipeline.policy.load import load_set, statement
from pipeline.shells.controlclient import Control
from schemas.errors import OperatorFault
from schemas.limits import CHAIN_LINKS_MAX
from schemas.records import Decision, Verdict
from schemas.vocabulary import action_uid, agent_uid, parse_uid

PRINCIPALS = ("Agent", "User", "Service")
"""The entity types that can stand in a chain."""


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add `policy` with its four commands."""
    inner, where = add_group(commands, common, "policy", "check policies, try a call, see which are in force")

    check = inner.add_parser("check", parents=[where], help="compile a folder, or name its first error", allow_abbrev=False)
    check.add_argument("folder", metavar="DIR", nargs="?", help="the folder (default: `policies` in the home)")
    check.set_defaults(run=run_check)

    test = inner.add_parser("test", parents=[where], help="decide one call, and say why", allow_abbrev=False)
    test.add_argument("folder", metavar="DIR", nargs="?", help="the folder (default: `policies` in the home)")
    test.add_argument("--chain", nargs="+", required=True, metavar="WHO",
                      help="who acts for whom, root first: names of agents, or uids such as 'User::\"alice\"'")  # fmt: skip
    test.add_argument("--action", required=True, metavar="ACTION", help="such as `mcp:tools/call` or `http:POST`")
    test.add_argument("--resource", required=True, metavar="UID", help="such as 'Tool::\"server/tool\"'")
    test.add_argument("--expect", choices=("allow", "deny"), help="exit 1 when the decision is the other one")
    test.set_defaults(run=run_test)

    text = "which policies each door runs, since when, and what is wrong in the folder"
    shown = inner.add_parser("status", parents=[where], help=text, allow_abbrev=False)
    shown.add_argument("--json", action="store_true", help="for programs")
    shown.set_defaults(run=run_status)

    text = "back to the policies before these, as a new epoch"
    rollback = inner.add_parser("rollback", parents=[where], help=text, allow_abbrev=False)
    add_waiting(rollback)
    rollback.set_defaults(run=run_rollback)


def _folder(args: argparse.Namespace) -> Path:
    folder = Path(args.folder) if args.folder is not None else home_of(args).policies
    if not folder.is_dir():
        raise OperatorFault(f"{folder}: is no folder (an enforcer without one refuses every call)")
    return folder


def run_check(args: argparse.Namespace) -> int:
    """`wardline policy check`: one line, or OperatorFault for the first error."""
    folder = _folder(args)
    print(f"ok: {statement(folder, load_set(folder))}")
    return 0


def run_test(args: argparse.Namespace) -> int:
    """`wardline policy test`: the decision, and that of each link. Exit code 1 when it is not the one that was expected."""
    matcher = Matcher(load_set(_folder(args)).bundle.encode())
    chain = make_chain(tuple(_principal(text) for text in args.chain))
    action, resource = _action(args.action), _resource(args.resource)
    decision = matcher.decide(chain.links, action, resource)
    if chain.too_deep:
        print(f"deny: chain, since {len(args.chain)} principals are more than {CHAIN_LINKS_MAX}")
    else:
        print(_said(decision))
        for link in chain.links:
            print(f"  {link}  {_said(matcher.decide((link,), action, resource))}")
    return int(args.expect not in (None, _verdict(decision)))


def _verdict(decision: Decision) -> str:
    return "allow" if decision.verdict is Verdict.ALLOW else "deny"


def _said(decision: Decision) -> str:
    by = f" by {', '.join(decision.because)}" if decision.because else ""
    return f"{_verdict(decision)}: {decision.reason}{by}"


def _principal(text: str) -> str:
    if '::"' not in text:
        return agent_uid(text)
    if parse_uid(text)[0] not in PRINCIPALS:
        raise OperatorFault(f"--chain: `{text}` is none of {', '.join(PRINCIPALS)}")
    return text


def _action(text: str) -> str:
    if '::"' not in text:
        return action_uid(text)
    kind, name = parse_uid(text)
    if kind != "Action":
        raise OperatorFault(f"--action: `{text}` is no action")
    return action_uid(name)


def _resource(text: str) -> str:
    parse_uid(text)
    return text


# -- in force ------------------------------------------------------------------------------------------------------------


def run_status(args: argparse.Namespace) -> int:
    """`wardline policy status`: 0 when every door runs the policies in force and the folder has no error, else 1."""
    control = Control(home := home_of(args), config_of(args, home))
    said = control.ask("/policy")
    labels = labels_of(home)
    doors = [door for host in control.ask("/acks")["hosts"] if host["expected"] for door in standings(host, labels)]
    digest, problem = str(said["digest"]), str((said["problem"] or {}).get("text", ""))
    if args.json:
        shown = [_door_as_json(door) for door in doors]
        print(json.dumps({"digest": digest, "previous": said["previous"], "problem": problem, "doors": shown}, indent=2))
    else:
        print(f"in force  {digest or 'none: nothing is permitted'}")
        print(f"before    {said['previous'] or '-'}")
        if problem:
            print(f"PROBLEM   {problem}")
        if doors:
            rows = [(door.name, door.policy_digest or "none", _since(door), door.why) for door in doors]
            print("\n" + table(("DOOR", "RUNS", "SINCE", ""), rows))
    return int(bool(problem) or any(door.policy_digest != digest for door in doors))


def _since(door: Standing) -> str:
    return clock(door.since_ns / 1e9) if door.since_ns else "-"


def _door_as_json(door: Standing) -> dict[str, Any]:
    return {
        "host": door.host, "door": door.door, "digest": door.policy_digest, "since": door.since_ns / 1e9, "why": door.why,
    }  # fmt: skip


def run_rollback(args: argparse.Namespace) -> int:
    """`wardline policy rollback`: 0 when every door decides by them, else 1."""
    config = config_of(args, home := home_of(args))
    control = Control(home, config)
    change = control.change("policy-rollback")
    digest = str(change.result["digest"])
    return report(control, config, args, change, f"back to policies {digest[:12]}", digest=digest)
