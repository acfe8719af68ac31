"""Control, its log, two hosts and their doors in one thread, and one `random.Random` that drives them.

    operator -> [change] -> journal -> [publish] -> wire -> [deliver] -> log -> [fetch] -> [read] -> board -> doors
                                          ^                                                  |
                                          +---- [hear] <- acks <- [ack] <- seen <------------+

Each `step` is one thing that happens to one of them; which one, and what goes wrong in it, the seed says. Each seed also draws
which kinds of fault it has at all. `heal_and_drain` turns all faults off and lets everything run until all agree.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from enforcers.doors.obeyed import LATE_S
from schemas.config import Config, Enforcer
from schemas.config import Control as ControlConfig
from schemas.errors import OperatorFault
from schemas.home import Home
from schemas.process import private_dir
from tests.sim.control import attacks, shipped
from tests.sim.control.control import Control, arrive
from tests.sim.control.door import AGENTS, TOKENS, USERS, Door
from tests.sim.control.host import Clocked, Host
from tests.sim.control.journal import Journal
from tests.sim.control.rules import Truth
from tests.sim.control.topic import Broker, Wire
from tests.sim.story import Broken, Died, Story
from tests.support.entries import CONTROL, Signer

STEPS = 150
STALE_MS = 5_000
HOSTS = ("enforce-1", "enforce-2")
DRAIN_ROUNDS_MAX = 80
NESTED_MAX = 3
TRIES_MAX = 20
FAULTS = ("control dies", "hosts die", "doors die", "doors stop", "broker", "cuts", "send", "acks", "stalls", "disk", "attacks",
          "compaction", "spool", "keys")  # fmt: skip
SECRET = f"scrypt$16384$8$1${'A' * 22}${'A' * 43}"
SIGNERS = {name: Signer(name) for name in HOSTS}


class World:
    """One history. `with World(seed, folder) as world: world.run()`."""

    def __init__(self, seed: int, root: Path) -> None:
        self.story = story = Story(seed)
        self.truth = Truth(STALE_MS * 1_000_000, int(LATE_S * 1e9))
        self.root = root
        self.home = Home(root / "home")
        self.faults = {fault for fault in FAULTS if story.chance(0.5)}
        story.tell(f"seed {seed}: {', '.join(sorted(self.faults)) or 'no faults'}")
        self.config = Config(
            control=ControlConfig(heartbeat_ms=1_000, stale_ms=STALE_MS), enforcer=Enforcer(fsync=False)
        )  # fmt: skip
        for name in HOSTS:
            private_dir(self.home.host(name))
        pem = Ed25519PublicKey.from_public_bytes(CONTROL.public).public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (private_dir(self.home.trusted("control")) / f"{CONTROL.key_id.hex()}.pub").write_bytes(pem)
        self.journal = Journal(keys={CONTROL.key_id.hex(): CONTROL})
        self.broker = Broker(story, embedded=story.chance(0.5))
        self.loose: list[Wire] = []
        self.late_acks: list[tuple[int, bytes, bytes]] = []
        self.control: Control | None = None
        self.hosts: dict[str, Host] = {}
        self.boards: list[Clocked] = []
        self.truth.between = lambda name: any(board.between for board in self.boards if board.host == name)
        self.doors: list[Door] = []
        self.unanswered: list[str] = []
        self._numbers = 0
        self._depth = 0
        self._stack = ExitStack()

    def __enter__(self) -> "World":
        shipped.enter(self._stack, self.story, self.broker, self._write, lambda: None)
        logging.disable(logging.CRITICAL)
        self._stack.callback(logging.disable, logging.NOTSET)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self) -> None:
        """The whole history. Raises Broken, naming the rule, when something does not hold."""
        for name in HOSTS:
            self._guarded(lambda name=name: self._starts(name))
        self._guarded(self._control_starts)
        for _ in range(4):
            self._round()
        for _ in range(STEPS):
            self.step()
        self.heal_and_drain()

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except (Broken, Died):
            raise
        except Exception as fault:
            raise Broken("runs", f"{type(fault).__name__}: {str(fault).replace(str(self.root), '')}") from fault

    # -- one step ----------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One thing happens."""
        self._pass(self.story.pick((1, 5, 20, 60, 150, 400)))
        actions = self._actions
        self._guarded(lambda: self.story.random.choices(list(actions), list(actions.values()))[0](self))
        for host in self.hosts.values():
            host.check()

    def _pass(self, ms: int) -> None:
        self.story.clock.pass_ms(ms)
        for board in self.boards:
            board.look()
        for door in self._free():
            if ms > 60 or self.story.chance(0.5):
                door.look()

    _actions: dict[Callable[["World"], None], int]

    def _others(self, steps: int) -> None:
        """What goes on while one door is in the middle of a call."""
        if self._depth >= NESTED_MAX:
            return self._pass(20)
        self._depth += 1
        try:
            for _ in range(steps):
                self.step()
        finally:
            self._depth -= 1

    # -- control -----------------------------------------------------------------------------------------------------

    def _control_starts(self) -> None:
        self.control = Control(self.story, self.truth, self.home, self.config, self.journal, self.broker, self.loose)
        self.control.sends_badly = "send" in self.faults
        self.control.books.may_die = "control dies" in self.faults
        for request_id in self.unanswered:
            self.truth.answered(request_id, self.control.books.answer_for(request_id))
        self.unanswered.clear()

    def _control_works(self, act: Callable[[Control], None]) -> None:
        try:
            if self.control is None:
                self._control_starts()
            else:
                act(self.control)
        except Died:
            self._control_dies()

    def _control_dies(self) -> None:
        if self.control is not None:
            self.control.die()
            self.control = None

    def _control_killed(self) -> None:
        if "control dies" in self.faults and self.control is not None:
            self.story.fault("control died")
            self._control_dies()

    def _operate(self) -> None:
        if self.control is None or self.control.books.empty:
            return
        request = self._request(self.control)
        request_id = f"request {self._number()}"
        self.unanswered.append(request_id)
        try:
            epoch = self.control.books.make(request, request_id, "uid:tester")
        except OperatorFault as fault:
            self.story.tell(f"refused: {request['do']}: {fault}")
            self.unanswered.remove(request_id)
            return
        except Died:
            return self._control_dies()
        self.unanswered.remove(request_id)
        self.truth.answered(request_id, epoch)
        self.story.tell(f"epoch {epoch}: {request['do']} {request.get('kind', '')} {request.get('name', '')}".rstrip())
        self.story.seen[f"change: {request['do']}"] += 1

    def _request(self, control: Control) -> Mapping[str, Any]:
        log = control.books.log
        missing = [name for name in HOSTS if log.get(f"enforcer/{name}") is None]
        if missing and self.story.chance(0.7):
            return {"do": "enforcer-add", "name": missing[0], "key": SIGNERS[missing[0]].public.hex()}
        what = self.story.pick(("revoke",) * 6 + ("unrevoke",) * 3 + ("pause", "resume", "resume", "agent", "agent", "policy",
                               "policy", "policy-rollback", "many", "keys", "enforcer"))  # fmt: skip
        match what:
            case "revoke":
                return {"do": "revoke", **self._selected()}
            case "unrevoke":
                standing = log.entries("revocation")
                value = self.story.pick(standing).value if standing else None
                return {"do": "unrevoke", **{name: (value or {}).get(name, "") for name in ("kind", "name", "cascade")}}
            case "pause":
                return {"do": "pause", "reason": "test"}
            case "agent":
                name = self.story.pick("abcd")
                if log.get(f"agent/{name}") is not None:
                    return {"do": "agent-remove", "name": name}
                return {"do": "agent-add", "name": name, "owner": "o", "secret": SECRET, "subs": [], "spiffe": []}
            case "policy":
                digest = hashlib.sha256(str(self._number()).encode()).hexdigest()
                return {"do": "policy", "digest": digest, "bytes": 1, "packed": 1, "chunks": 1, "policies": 1}
            case "many":
                return {"do": "revoke-many", "items": [self._selected() for _ in range(3)]}
            case "keys" if "keys" in self.faults:
                return self._keys(control)
            case "enforcer" if "keys" in self.faults and not missing:
                return {"do": "enforcer-remove", "name": self.story.pick(HOSTS)}
        return {"do": "policy-rollback"} if what == "policy-rollback" else {"do": "resume"}

    def _selected(self) -> dict[str, Any]:
        kind = self.story.pick(("agent", "agent", "token", "session", "destination", "principal"))
        name = {
            "agent": self.story.pick("ab"), "token": self.story.pick(TOKENS[1:]), "session": "s",
            "destination": self.story.pick(("files", "files/read", "example.com", "never.seen")),
            "principal": self.story.pick((*USERS, AGENTS[0])),
        }[kind]  # fmt: skip
        return {"kind": kind, "name": name, "cascade": self.story.chance(0.5), "reason": "test",
                "for_s": self.story.pick((0, 0, 3, 8)), "not_before_s": 0}  # fmt: skip

    def _keys(self, control: Control) -> Mapping[str, Any]:
        """A new control key, or the end of the oldest once everybody has applied everything, as operators are told."""
        names = [entry.name for entry in control.books.log.entries("key")]
        for _ in range(3 if len(names) > 1 else 0):
            self._round()
        settled = self.control is control and control.ready and control.applied()
        if len(names) > 1 and settled and len(self.hosts) == len(HOSTS):
            self.story.fault("key retired")
            control.books.sign_again()
            control.all_again()
            return {"do": "key-retire", "key_id": names[0]}
        signer = Signer(f"control key {self._number()}")
        self.journal.keys[signer.key_id.hex()] = signer
        self.story.fault("key rotated")
        return {"do": "key-rotate", "public": signer.public.hex()}

    def _publish(self) -> None:
        self._control_works(Control.publish)

    def _deliver(self) -> None:
        self._control_works(Control.deliver)

    def _control_hears(self) -> None:
        self._control_works(Control.hear)

    def _expire(self) -> None:
        self._control_works(lambda control: None if control.books.empty else control.books.expire())

    def _report(self) -> None:
        words = {name: [said[0] for door in self.doors if door.host == name and (said := door.seen.read())] for name in HOSTS}
        self._control_works(lambda control: control.report(words))

    def _loose_arrives(self) -> None:
        if self.loose:
            wire = self.story.pick(self.loose)
            key, value, *_ = wire.hand.popleft()
            self.story.fault("a late message arrives")
            arrive(self.broker, self.truth, self.story, wire.identity, key, value)
            if not wire.hand:
                self.loose.remove(wire)

    # -- hosts -------------------------------------------------------------------------------------------------------

    def _starts(self, name: str) -> None:
        boot = (1_700_000_000 << 32) + self._number()
        host = Host(self.story, self.truth, self.home, self.config, name, SIGNERS[name], self.broker, boot)
        host.may_die = "hosts die" in self.faults
        self.hosts[name] = host
        self.boards.append(host.board)

    def _write(self, path: Path, data: bytes, *, sync: bool) -> None:
        self.hosts[path.parent.name].write(path, data, sync=sync)

    def _host_works(self, act: Callable[[Host], None]) -> None:
        name = self.story.pick(HOSTS)
        host = self.hosts.get(name)
        if host is None:
            return self._starts(name)
        try:
            act(host)
        except Died:
            self._host_dies(name)

    def _host_dies(self, name: str) -> None:
        host = self.hosts.pop(name, None)
        if host is not None:
            self.story.fault("host died", name)

    def _fetch(self) -> None:
        self._host_works(Host.fetch)

    def _read(self) -> None:
        self._host_works(Host.read)

    def _ask(self) -> None:
        self._host_works(Host.ask)

    def _keep(self) -> None:
        self._host_works(Host.keep)

    def _bundle(self) -> None:
        self._host_works(Host.bundle)

    def _host_killed(self) -> None:
        if "hosts die" in self.faults:
            name = self.story.pick(HOSTS)
            host = self.hosts.get(name)
            if host is not None and self.story.chance(0.3):
                self.story.fault("host ended")
                host.board.close()
            self._host_dies(name)

    def _acks(self) -> None:
        self._host_works(self._says)

    def _says(self, host: Host) -> None:
        data = host.ack([(door.boot, door.seen) for door in self.doors if door.host == host.name])
        if not host.reached:
            return
        fate = self.story.pick(("now",) * 6 + ("lost", "late", "twice")) if "acks" in self.faults else "now"
        if fate != "now":
            self.story.fault(f"ack: {fate}")
        if fate == "late":
            self.late_acks.append((self.broker.identity, host.name.encode(), data))
        for _ in range({"now": 1, "twice": 2}.get(fate, 0)):
            self.broker.acks.append(host.name.encode(), data, None)

    def _late_ack(self) -> None:
        if self.late_acks and self.broker.up:
            identity, key, data = self.late_acks.pop(self.story.random.randrange(len(self.late_acks)))
            if identity == self.broker.identity:
                self.broker.acks.append(key, data, None)

    # -- doors -------------------------------------------------------------------------------------------------------

    def _free(self) -> list[Door]:
        return [door for door in self.doors if not door.busy and not door.stopped]

    def _door_works(self) -> None:
        if len(self.doors) < 4 and (not self.doors or self.story.chance(0.05)):
            return self._door_starts(self.story.pick(HOSTS))
        if free := self._free():
            door = self.story.pick(free)
            try:
                door.call(full="spool" in self.faults, may_die="doors die" in self.faults)
            except Died:
                self.doors.remove(door)

    def _door_starts(self, host: str) -> None:
        folder = self.home.host(host) / "doors" / f"{(1_700_000_000 << 32) + self._number():016x}"
        bundles = self.home.host(host) / "bundle"
        self.doors.append(Door(self.story, self.truth, host, self.home.board(host), bundles, folder, self._others))

    def _door_looks(self) -> None:
        if free := self._free():
            self.story.pick(free).look(wait=True)

    def _door_dies(self) -> None:
        if "doors die" in self.faults and (free := self._free()):
            self.story.fault("door died")
            self.doors.remove(self.story.pick(free))

    def _door_stops(self) -> None:
        if "doors stop" in self.faults and (quiet := [door for door in self.doors if not door.busy]):
            door = self.story.pick(quiet)
            door.stopped = not door.stopped
            self.story.fault("door stopped" if door.stopped else "door goes on", door.boot[-4:])

    # -- what goes wrong ---------------------------------------------------------------------------------------------

    def _broker_fails(self) -> None:
        if "broker" in self.faults and self.broker.up:
            self.broker.stop()

    def _cut(self) -> None:
        if "cuts" in self.faults:
            victims = [*self.hosts.values(), *([self.control] if self.control else [])]
            if victims:
                victim = self.story.pick(victims)
                victim.cut = True
                self.story.fault("control cut off" if victim is self.control else "host cut off")

    def _stall(self) -> None:
        """Nobody runs for a while: what is in buffers grows old."""
        if "stalls" in self.faults:
            ms = self.story.pick((1_000, 3_000, 6_000, 20_000))
            self.story.fault("stall", f"{ms} ms")
            self._pass(ms)

    def _disk_fails(self) -> None:
        if "disk" in self.faults and self.hosts:
            self.story.pick(list(self.hosts.values())).disk_full = True

    def _repair(self) -> None:
        if not self.broker.up:
            return self.broker.start()
        for host in self.hosts.values():
            host.cut = host.disk_full = False
        if self.control is not None:
            self.control.cut = False

    def _compact(self) -> None:
        if "compaction" in self.faults and not self.broker.embedded and self.broker.up:
            self.broker.compact()

    def _attacker(self) -> None:
        if "attacks" in self.faults:
            attacks.attack(self.story, self.truth, self.broker, list(self.journal.keys.values()))

    # -- everybody at once -------------------------------------------------------------------------------------------

    def _round(self) -> None:
        """What half a second without trouble brings."""
        for _ in range(2):
            self._pass(100)
            for _ in range(12):
                self._control_works(Control.publish)
                self._control_works(Control.deliver)
            for name in HOSTS:
                self._host_round(name)
            self._pass(100)
        for host in list(self.hosts.values()):
            self._says(host)
        for _ in range(4):
            self._control_works(Control.hear)

    def _host_round(self, name: str) -> None:
        host = self.hosts.get(name)
        if host is None:
            return self._starts(name)
        try:
            for _ in range(30):
                host.fetch()
                while host._buffer:
                    host.read()
                if not host.reached or host._next >= self.broker.control.end:
                    break
            host.ask()
            host.ask()
            host.bundle()
            host.keep()
        except Died:
            self._host_dies(name)

    def _all_work(self) -> None:
        self._round()

    # -- the end -----------------------------------------------------------------------------------------------------

    def heal_and_drain(self) -> None:
        """No more faults: within DRAIN_ROUNDS_MAX rounds everybody has the journal's state and has said so."""
        self.story.tell("healed")
        attacked = "attacks" in self.faults
        self._heal()
        for number in range(DRAIN_ROUNDS_MAX):
            if number == DRAIN_ROUNDS_MAX // 2 and attacked:
                # somebody has put an entry back whose removal was compacted away: only a start of control looks for that
                self.story.fault("control restarted to repair the log")
                self._control_dies()
                self._guarded(self._control_starts)
            self._guarded(self._round)
            if self._agree():
                break
        else:
            raise Broken("converges", self._differences())
        self._judge()

    def _heal(self) -> None:
        self.faults = set()
        if not self.broker.up:
            self.broker.start()
        self.late_acks.clear()
        for wire in self.loose:
            while wire.hand:
                key, value, *_ = wire.hand.popleft()
                arrive(self.broker, self.truth, self.story, wire.identity, key, value)
        self.loose.clear()
        self._repair()
        for host in self.hosts.values():
            host.may_die = False
        for door in self.doors:
            door.stopped = False
        if self.control is None:
            self._guarded(self._control_starts)
        assert self.control is not None
        self.control.sends_badly = self.control.books.may_die = False
        for _ in range(4):
            self._guarded(self._round)
        for name in HOSTS:
            if self.control.books.log.get(f"enforcer/{name}") is None:
                request = {"do": "enforcer-add", "name": name, "key": SIGNERS[name].public.hex()}
                self.control.books.make(request, f"request {self._number()}", "uid:tester")
            if not any(door.host == name for door in self.doors):
                self._door_starts(name)

    def _agree(self) -> bool:
        control = self.control
        assert control is not None
        return (
            control.ready
            and control.books.log.epoch == self.truth.epoch
            and all(h.feed.obey.state == "ready" and h.feed.obey.epoch == self.truth.epoch for h in self.hosts.values())
            and len(self.hosts) == len(HOSTS)
            and control.applied()
        )

    def _differences(self) -> str:
        control = self.control
        assert control is not None
        said = [f"{h.name} {h.feed.obey.state} {h.feed.obey.epoch}: {h.feed.obey.why}" for h in self.hosts.values()]
        reports = [(host["host"], host["applied"], host.get("state")) for host in control.heard.report(self.truth.epoch)]
        return f"epoch {self.truth.epoch}, control has published {control.epoch}; {'; '.join(said)}; it has heard {reports}"

    def _judge(self) -> None:
        for host in self.hosts.values():
            control = self.control
            assert control is not None
            if host.feed.obey.follower.digest() != control.books.log.digest():
                raise Broken("converges", f"{host.name} has another digest than control")
        before = self.truth.decided
        for door in self.doors:
            for _ in range(TRIES_MAX):
                self._guarded(door.call)
                if self.truth.decided > before:
                    break
                self._guarded(self._round)
            else:
                raise Broken("converges", f"door {door.boot} of {door.host} still waits")
            before = self.truth.decided


World._actions = {
    World._all_work: 12,
    World._operate: 12,
    World._publish: 16,
    World._deliver: 18,
    World._loose_arrives: 3,
    World._control_hears: 6,
    World._expire: 4,
    World._report: 4,
    World._fetch: 16,
    World._read: 18,
    World._ask: 10,
    World._keep: 12,
    World._bundle: 6,
    World._acks: 8,
    World._late_ack: 2,
    World._door_works: 36,
    World._door_looks: 14,
    World._door_dies: 1,
    World._door_stops: 2,
    World._control_killed: 2,
    World._host_killed: 2,
    World._broker_fails: 2,
    World._cut: 2,
    World._stall: 2,
    World._disk_fails: 1,
    World._repair: 8,
    World._compact: 2,
    World._attacker: 6,
}
