"""Four doors of a real replay under `wardline up`, while an operator revokes and edits policies: what the store says of it."""

import json
import random
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.shells.controlclient import Control
from schemas.config import load_config
from schemas.selectors import caller_texts, target_texts
from tests.support.home import Wardline, wait_until

CALLS = 100_000
AGENTS = 30
SERVERS = ("bank", "mail", "files", "web", "chat")
PERMIT = '@id("all")\npermit (principal, action, resource);\n'
FORBID = '@id("no-bank")\nforbid (principal, action, resource in McpServer::"bank");\n'
CHOICES = [
    *(("agent", f"a{n}", cascade) for n in range(AGENTS) for cascade in (False, True)),
    *(("session", f"s{n}", False) for n in range(0, 200, 9)),
    *(("destination", f"{server}/t2", False) for server in SERVERS),
]  # fmt: skip


def line(number: int) -> dict[str, Any]:
    agent = number * 7 % AGENTS
    return {
        "time": number, "agent": f"a{agent}", "chain": ['User::"u"', f"a{(agent + 1) % AGENTS}", f"a{agent}"],
        "session": f"s{number % 200}", "action": "mcp:tools/call", "resource": f'Tool::"{SERVERS[number % 5]}/t{number % 3}"',
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class State:
    """What control said up to an epoch."""

    revoked: frozenset[str]
    policy: str


def states(home: Wardline) -> dict[int, State]:
    """After each epoch, by the entries in the store."""
    found, revoked, policy = {0: State(frozenset(), "")}, set[str](), ""
    for epoch, kind, name, value in home.sql("SELECT epoch, kind, name, value FROM control FINAL ORDER BY epoch"):
        if kind == "revocation":
            (revoked.add if value else revoked.discard)(name)
        elif kind == "policy":
            policy = json.loads(value)["digest"]
        found[epoch] = State(frozenset(revoked), policy)
    return found


def change(home: Wardline, control: Control, rng: random.Random, live: list[tuple[str, str, bool]]) -> None:
    fate = rng.random()
    if fate < 0.1:
        home.write_policies(PERMIT + FORBID * (rng.random() < 0.5))
    elif live and (fate < 0.5 or len(live) > 6):
        kind, name, cascade = live.pop(rng.randrange(len(live)))
        control.change("unrevoke", kind=kind, name=name, cascade=cascade)
    else:
        kind, name, cascade = one = rng.choice([choice for choice in CHOICES if choice not in live])
        control.change("revoke", kind=kind, name=name, cascade=cascade, reason="drill", for_s=0, not_before_s=0)
        live.append(one)


@pytest.mark.soak
def test_what_an_operator_decides_during_a_hundred_thousand_calls_is_obeyed_by_every_door_that_said_so(
    wardline: Wardline, tmp_path: Path
) -> None:
    path = tmp_path / "calls.jsonl"
    path.write_text("".join(json.dumps(line(n)) + "\n" for n in range(1, CALLS + 1)))
    wardline.write_policies(PERMIT)
    wardline.up("--doors", "0")  # the doors of the replay alone
    replay = wardline.popen("replay", str(path), "--doors", "4")
    wait_until(lambda: len(list(wardline.home.run.glob("door-*.json"))) == 4, 60, lambda: wardline.said("replay"))
    control, rng = Control(wardline.home, load_config(wardline.home.config)), random.Random(7)
    live: list[tuple[str, str, bool]] = []
    while list(wardline.home.run.glob("door-*.json")):
        change(wardline, control, rng, live)
        time.sleep(rng.uniform(0, 0.02))
    assert replay.wait(240) == 0, wardline.said("replay")
    last = control.audit(0, 10_000)[-1]["epoch"]
    wait_until(lambda: wardline.sql("SELECT max(epoch) FROM control FINAL") == [(last,)], 30, "every entry is stored")

    known = states(wardline)
    words: dict[str, list[tuple[Any, int, str]]] = defaultdict(list)
    for door, applied, epoch, digest in wardline.sql("SELECT door, applied, epoch, policy_digest FROM acks WHERE door != ''"
                                                     " ORDER BY door, applied"):  # fmt: skip
        words[door].append((applied, epoch, digest))
    calls = wardline.sql("SELECT lower(hex(boot)), seq, ref, recorded, epoch, verdict, reason, policy_digest FROM calls"
                         " ORDER BY boot, seq")  # fmt: skip
    assert [ref for _, _, ref, *_ in sorted(calls, key=lambda call: int(call[2]))] == list(range(1, CALLS + 1))
    assert words.keys() == {call[0] for call in calls}
    texts = {}
    for n in range(1, CALLS + 1):
        said = line(n)
        chain = ('User::"u"', *(f'Agent::"{name}"' for name in said["chain"][1:]))
        texts[n] = frozenset(caller_texts(chain, session=said["session"])) | frozenset(target_texts(said["resource"]))
    bank = {n for n in texts if n % 5 == 0}
    forbidding = {digest for *_, reason, digest in calls if reason == "forbid"}
    at, door, place = 0, "", 0
    for boot, _, ref, recorded, epoch, verdict, reason, digest in calls:
        if boot != door:
            door, place, at = boot, 0, 0
        assert epoch >= at, "a door goes back"
        at = epoch
        hit = known[epoch].revoked & texts[ref]
        if reason == "revoked":
            # its decision found it revoked, or what came between that and its act
            assert hit or any(known[e].revoked & texts[ref] for e in known if epoch < e)
        else:
            assert not hit, (ref, epoch, hit)
            assert (verdict, reason) == (("deny", "forbid") if digest in forbidding and ref in bank else ("allow", "permit"))
        while place < len(words[door]) and words[door][place][0] < recorded:
            place += 1
        if place:
            _, said_epoch, said_digest = words[door][place - 1]
            assert epoch >= said_epoch, "a door records by less than it acknowledged"
            later = {known[e].policy for e in known if said_epoch <= e <= last}
            assert digest in later | {said_digest}
    # the race took place
    reasons = Counter(call[6] for call in calls)
    assert min(reasons[reason] for reason in ("permit", "revoked", "forbid")) > 200, reasons
    assert len({call[4] for call in calls}) > 30
    assert all(len(said) > 10 for said in words.values()), {door: len(said) for door, said in words.items()}
    assert wardline.sql("SELECT count() FROM gaps") == [(0,)]
