"""Control, its log, two hosts and their doors in one thread, and one `random.Random` that drives them.

    operator -> [change] -> journal -> [publish] -> wire -> [deliver] -> log -> [fetch] -> [read] -> board -> doors
                                          ^                                                  |
                                          +---- [hear] <- acks <- [ack] <- seen <------------+

Each `step` is one thing that happens to one of them; which one, and what goes wrong in it, the seed says. Each seed also draws
which kinds of fault it has at all. `drain` turns all faults off and lets everything run until all agree.
"""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from enforcers.doors.obeyed import LATE_S
from schemas.config import Config, Enforcer
from schemas.config import Control as ControlConfig
from schemas.errors import OperatorFault
from schemas.home import Home
from schemas.process import private_dir
from tests.sim.control import shipped, troubles
from tests.sim.control.control import Control, arrive
from tests.sim.control.door import Door
from tests.sim.control.drain import heal_and_drain
from tests.sim.control.host import HOSTS, SIGNERS, Clocked, Host
from tests.sim.control.journal import Journal
from tests.sim.control.operators import request
from tests.sim.control.rules import Truth
from tests.sim.control.topic import Broker, Wire
from tests.sim.story import Broken, Died, Story
from tests.support.entries import CONTROL

STEPS = 150
STALE_MS = 5_000
NESTED_MAX = 3
SHORT = 4
"""Steps; in more a change comes all the way from its operator to the board."""
FAULTS = ("control dies", "hosts die", "doors die", "doors stop", "broker", "cuts", "send", "acks", "stalls", "disk", "attacks",
          "compaction", "spool", "keys")  # fmt: skip


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
            self.round()
        for _ in range(STEPS):
            self.step()
        heal_and_drain(self)

    def number(self) -> int:
        """One that was not used."""
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
            if steps > SHORT and self.story.chance(0.5):
                self._guarded(self._operate)
                self._guarded(self.round)
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
        asked = request(self, self.control)
        request_id = f"request {self.number()}"
        self.unanswered.append(request_id)
        try:
            epoch = self.control.books.make(asked, request_id, "uid:tester")
        except OperatorFault as fault:
            self.story.tell(f"refused: {asked['do']}: {fault}")
            self.unanswered.remove(request_id)
            return
        except Died:
            return self._control_dies()
        self.unanswered.remove(request_id)
        self.truth.answered(request_id, epoch)
        self.story.tell(f"epoch {epoch}: {asked['do']} {asked.get('kind', '')} {asked.get('name', '')}".rstrip())
        self.story.seen[f"change: {asked['do']}"] += 1

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
        boot = (1_700_000_000 << 32) + self.number()
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
        folder = self.home.host(host) / "doors" / f"{(1_700_000_000 << 32) + self.number():016x}"
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

    # -- everybody at once -------------------------------------------------------------------------------------------

    def round(self) -> None:
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
        self.round()



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
    troubles.broker_fails: 2,
    troubles.cut: 2,
    troubles.stall: 2,
    troubles.disk_fails: 1,
    troubles.repair: 8,
    troubles.compact: 2,
    troubles.attacker: 6,
}
