"""What operators ask control for: any request there is, of few names, so that one often undoes another."""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tests.sim.control.control import Control
from tests.sim.control.door import AGENTS, TOKENS, USERS
from tests.sim.control.host import HOSTS, SIGNERS
from tests.sim.story import Story
from tests.support.entries import Signer

if TYPE_CHECKING:
    from tests.sim.control.world import World

SECRET = f"scrypt$16384$8$1${'A' * 22}${'A' * 43}"


def request(world: "World", control: Control) -> Mapping[str, Any]:
    """What an operator asks for now."""
    log = control.books.log
    missing = [name for name in HOSTS if log.get(f"enforcer/{name}") is None]
    if missing and world.story.chance(0.7):
        return {"do": "enforcer-add", "name": missing[0], "key": SIGNERS[missing[0]].public.hex()}
    what = world.story.pick(("revoke",) * 6 + ("unrevoke",) * 3 + ("pause", "resume", "resume", "agent", "agent", "policy",
                           "policy", "policy-rollback", "many", "keys", "enforcer"))  # fmt: skip
    match what:
        case "revoke":
            return {"do": "revoke", **_selected(world.story)}
        case "unrevoke":
            standing = log.entries("revocation")
            value = world.story.pick(standing).value if standing else None
            return {"do": "unrevoke", **{name: (value or {}).get(name, "") for name in ("kind", "name", "cascade")}}
        case "pause":
            return {"do": "pause", "reason": "test"}
        case "agent":
            name = world.story.pick("abcd")
            if log.get(f"agent/{name}") is None:
                return {"do": "agent-add", "name": name, "owner": "o", "secret": SECRET, "subs": [], "spiffe": []}
            if world.story.chance(0.5):
                secret = f"{SECRET[:-6]}{world.number():06}"
                return {"do": "agent-rotate", "name": name, "secret": secret}
            return {"do": "agent-remove", "name": name}
        case "policy":
            digest = hashlib.sha256(str(world.number()).encode()).hexdigest()
            return {"do": "policy", "digest": digest, "bytes": 1, "packed": 1, "chunks": 1, "policies": 1}
        case "many":
            return {"do": "revoke-many", "items": [_selected(world.story) for _ in range(3)]}
        case "keys" if "keys" in world.faults:
            return _keys(world, control)
        case "enforcer" if "keys" in world.faults and not missing:
            return {"do": "enforcer-remove", "name": world.story.pick(HOSTS)}
    return {"do": "policy-rollback"} if what == "policy-rollback" else {"do": "resume"}


def _selected(story: Story) -> dict[str, Any]:
    kind = story.pick(("agent", "agent", "token", "session", "destination", "principal"))
    name = {
        "agent": story.pick("ab"), "token": story.pick(TOKENS[1:]), "session": "s",
        "destination": story.pick(("files", "files/read", "example.com", "never.seen")),
        "principal": story.pick((*USERS, AGENTS[0])),
    }[kind]  # fmt: skip
    return {"kind": kind, "name": name, "cascade": story.chance(0.5), "reason": "test",
            "for_s": story.pick((0, 0, 3, 8)), "not_before_s": 0}  # fmt: skip


def _keys(world: "World", control: Control) -> Mapping[str, Any]:
    """A new control key, or the end of the oldest once everybody has applied everything, as operators are told."""
    names = [entry.name for entry in control.books.log.entries("key")]
    for _ in range(3 if len(names) > 1 else 0):
        world.round()
    settled = world.control is control and control.ready and control.applied()
    if len(names) > 1 and settled and len(world.hosts) == len(HOSTS):
        world.story.fault("key retired")
        control.books.sign_again()
        control.all_again()
        return {"do": "key-retire", "key_id": names[0]}
    signer = Signer(f"control key {world.number()}")
    world.journal.keys[signer.key_id.hex()] = signer
    world.story.fault("key rotated")
    return {"do": "key-rotate", "public": signer.public.hex()}
