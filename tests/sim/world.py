"""The whole pipeline in one thread: doors, a host, Kafka, two workers and the store, and one `random.Random` that drives them.

    doors -> spool -> [seal] -> outbox -> [send] -> broker -> [fetch] -> worker -> [flush] -> store
                                  ^                                         |
                                  +------- [hear] <- frontiers <------------+

Each `step` is one thing that happens to one of them; which one, and what goes wrong in it, the seed says. Each seed also draws
which kinds of fault it has at all, so that histories with few faults get far and histories with many get strange. After each
step `Truth` is asked. `heal_and_drain` turns all faults off and lets everything run until it is stored.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipeline.cli.deadletter import own_partition
from schemas.config import Config, Enforcer, Kafka
from schemas.config import Worker as Work
from schemas.errors import OperatorFault, SpoolFull
from schemas.home import Home
from schemas.process import private_dir
from tests.sim import attacks, shipped
from tests.sim import host as hosts
from tests.sim.disk import AILMENTS, Disk
from tests.sim.doors import Door
from tests.sim.group import Group
from tests.sim.host import Host
from tests.sim.kafka import Broker
from tests.sim.rules import Truth
from tests.sim.store import Store
from tests.sim.story import Broken, Died, Story

STEPS = 200
PARTITIONS = 2
SLOTS = ("work-1", "work-2")
DRAIN_ROUNDS_MAX = 200
ROUNDS_AFTER = 4
FAULTS = ("doors die", "host dies", "power", "disk", "store", "send", "broker", "workers die", "zombies", "rebalance",
          "frontiers", "attacks", "old workers")  # fmt: skip

HOST_KEY = Ed25519PrivateKey.from_private_bytes(b"the simulated host's frame key..")
WORKER_KEYS = {slot: Ed25519PrivateKey.from_private_bytes(slot.encode().ljust(32, b".")) for slot in SLOTS}


def _pem(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


PINS = [("hosts", hosts.NAME, _pem(HOST_KEY)), *(("workers", slot, _pem(key)) for slot, key in WORKER_KEYS.items())]


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for one history, in memory where that can be: the disk under it is the `Disk`, not the machine's."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder) / "world"


class World:
    """One history. `with World(seed, folder) as world: world.run()`."""

    def __init__(self, seed: int, root: Path) -> None:
        self.story = story = Story(seed)
        self.truth = Truth()
        self.home = Home(root / "home")
        self.root = root
        root.mkdir()
        self.faults = {fault for fault in FAULTS if story.chance(0.55)}
        story.tell(f"seed {seed}: {', '.join(sorted(self.faults)) or 'no faults'}")
        private_dir(self.home.host(hosts.NAME) / "doors")
        private_dir(self.home.host(hosts.NAME) / "outbox")
        for role, name, pem in PINS:
            (private_dir(self.home.trusted(role)) / f"{name}.pub").write_bytes(pem)
        self.config = Config(
            kafka=Kafka(partitions=PARTITIONS, servers="" if story.chance(0.5) else "simulated:9092"),
            enforcer=Enforcer(
                segment_bytes=1 << 15, spool_bytes=story.pick((1 << 16, 3 << 15, 1 << 20)), spool_reserved_bytes=1 << 14,
                outbox_bytes=story.pick((8_000, 30_000, 1 << 20)), frame_records=story.pick((3, 8, 40)), resend_ms=400,
            ),
            worker=Work(batch_records=story.pick((20, 60, 200)), quiet_ms=150, insert_timeout_s=2),
        )  # fmt: skip
        self.disk = Disk(root, story)
        self.broker = Broker(story, PARTITIONS, embedded=not self.config.kafka.servers)
        self.store = Store(story, self.truth)
        self.wire: list[tuple[int, int, bytes]] = []
        self.doors: list[Door] = []
        self.host: Host | None = None
        self.group = Group(story, self.truth, self.broker, self.store, self.home, self.config, WORKER_KEYS)
        self._stack = ExitStack()
        self._looked_at = 0

    def __enter__(self) -> "World":
        self._stack.enter_context(self.disk)
        shipped.enter(self._stack, self.story, self.disk, self.truth, self._worker_is_old)
        logging.disable(logging.CRITICAL)
        self._stack.callback(logging.disable, logging.NOTSET)
        return self

    def __exit__(self, *_: object) -> None:
        if self.host is not None:
            self.host.die()
        self.group.end()
        self._stack.close()

    def run(self) -> None:
        """The whole history. Raises Broken, naming the rule, when something does not hold."""
        for _ in range(STEPS):
            self.step()
        self.heal_and_drain()

    def _worker_is_old(self) -> bool:
        return "old workers" in self.faults and self.story.chance(0.1)

    # -- one step ----------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One thing happens."""
        self.story.clock.pass_ms(self.story.pick((1, 5, 20, 60, 200)))
        actions = self._actions
        try:
            self.story.random.choices(list(actions), list(actions.values()))[0](self)
        except Broken:
            raise
        except Exception as fault:
            raise Broken("runs", f"{type(fault).__name__}: {fault}") from fault
        self._check()

    def _check(self) -> None:
        if self.truth.broken is not None:
            raise self.truth.broken
        if self.story.clock.spun:
            raise Broken("ends", "somebody goes round and round and lets nobody else run")
        if self.disk.operations != self._looked_at:
            self._looked_at = self.disk.operations
            self.truth.look(hosts.folder(self.home))
        if self.host is not None:
            self.host.check(self.store.frontier)

    _actions: dict[Callable[["World"], None], int]

    def _doors_work(self) -> None:
        if len(self.doors) < 3 and (not self.doors or self.story.chance(0.2)):
            self._as_process(self._door_starts, lambda: None)
        if self.doors:
            door = self.story.pick(self.doors)
            self._as_process(door.work, door.die)
            self._forget_dead_doors()

    def _door_starts(self) -> None:
        try:
            self.doors.append(Door(self.story, self.truth, hosts.folder(self.home) / "doors", self.config.enforcer))
        except SpoolFull:
            self.story.tell("a door has no room to start")

    def _forget_dead_doors(self) -> None:
        self.doors = [door for door in self.doors if not self.truth.doors[door.boot].dead]

    def _door_ends(self) -> None:
        if not self.doors:
            return
        door = self.story.pick(self.doors)
        if "doors die" in self.faults and self.story.chance(0.6):
            door.die()
        else:
            self._as_process(door.close, door.die)
        self._forget_dead_doors()

    def _as_process(self, act: Callable[[], None], die: Callable[[], None]) -> None:
        """Let something run that may die before any of its disk operations, alone or with the whole machine."""
        if self.faults & {"host dies", "power"} and self.story.chance(0.15):
            self.disk.arm(self.story.random.randrange(10))
        try:
            act()
        except Died:
            die()
            if "power" in self.faults and self.story.chance(0.5):
                self._power_fails()
        finally:
            self.disk.arm(None)

    def _host_works(self, act: Callable[[Host], None]) -> None:
        if self.host is None:
            self._as_process(self._host_starts, lambda: None)
        else:
            host = self.host
            self._as_process(lambda: act(host), self._host_dies)

    def _host_starts(self) -> None:
        try:
            self.host = Host(self.story, self.truth, self.home, self.config, HOST_KEY, self.broker, self.wire)
        except OperatorFault as fault:
            if self.disk.ails and "cannot be synced" in str(fault):
                self.story.fault("host cannot start")
                return
            raise Broken("starts", str(fault).replace(str(self.root), "")) from fault
        except AssertionError as fault:
            raise Broken("starts", f"assertion: {fault}") from fault
        self.host.sends_badly = "send" in self.faults
        self.host.may_die = "host dies" in self.faults

    def _host_dies(self) -> None:
        if self.host is not None:
            self.host.die()
            self.host = None
            self.story.fault("host died")

    def _seal(self) -> None:
        self._host_works(Host.seal)

    def _send(self) -> None:
        self._host_works(Host.send)

    def _answer(self) -> None:
        self._host_works(Host.answer)

    def _hear(self) -> None:
        self._host_works(self._hears)

    def _hears(self, host: Host) -> None:
        stored = self.broker.stored
        if not self.broker.up or not stored:
            return
        host.heard = min(host.heard, len(stored))  # the topic was compacted, or is a new one
        if host.heard == len(stored):
            if self.story.chance(0.03):
                host.heard = 0  # a new consumer starts at the beginning
                self.story.fault("frontiers heard again")
            return
        at = host.heard
        if "frontiers" in self.faults:
            fate = self.story.pick(("heard",) * 5 + ("lost", "twice", "early"))
            if fate != "heard":
                self.story.fault(f"frontier: {fate}")
            if fate == "lost":
                host.heard += 1
                return
            if fate == "early":
                at = self.story.random.randrange(at, len(stored))
            host.heard += fate == "heard"
        else:
            host.heard += 1
        host.hear(stored[at][1])

    def _host_killed(self) -> None:
        if "host dies" in self.faults:
            self._host_dies()

    def _power_fails(self) -> None:
        if "power" not in self.faults:
            return
        for door in self.doors:
            if not self.truth.doors[door.boot].dead:
                door.die()
        self.doors.clear()
        self._host_dies()
        self.disk.power_loss()

    def _repair(self) -> None:
        """Somebody puts right what is broken, one thing at a time."""
        if not self.broker.up:
            self.broker.start()
        elif not self.store.up:
            self.store.up = True
            self.story.tell("store up")
        elif self.disk.ails:
            self.disk.ails = ""
            self.story.tell("disk repaired")
        else:
            self.store.ails = False

    def _disk_fails(self) -> None:
        if "disk" in self.faults:
            self.disk.ails = self.story.pick(AILMENTS)

    def _broker_fails(self) -> None:
        if "broker" in self.faults and self.broker.up:
            self.broker.stop()

    def _wire_delivers(self) -> None:
        if self.wire:
            identity, partition, data = self.wire.pop(self.story.random.randrange(len(self.wire)))
            self.story.fault("a late message arrives")
            self.broker.produce(identity, partition, data)

    def _frontiers_compacted(self) -> None:
        if not self.broker.embedded:
            self.broker.compact()

    def _store_fails(self) -> None:
        if "store" in self.faults:
            if self.story.chance(0.3):
                self.store.up = False
                self.story.fault("store down")
            else:
                self.store.ails = True

    def _store_works(self) -> None:
        if self.store.inbox:
            self.store.execute(self.story.pick(self.store.inbox))
        elif self.story.chance(0.5):
            self.store.late()

    def _group_works(self) -> None:
        self.group.work()

    def _group_changes(self) -> None:
        self.group.change(self.faults)

    def _attacker(self) -> None:
        if "attacks" in self.faults:
            attacks.attack(self.story, self.broker, list(SLOTS))

    # -- the end -----------------------------------------------------------------------------------------------------

    def heal_and_drain(self) -> None:
        """No more faults: within DRAIN_ROUNDS_MAX rounds everything is stored, forgotten by the host, and stays so."""
        self.story.tell("healed")
        self.faults = set()
        self.disk.ails = ""
        self.store.up, self.store.ails = True, False
        if not self.broker.up:
            self.broker.start()
        if self.host is not None:
            self.host.sends_badly = self.host.may_die = False
        self.group.heal()
        for door in self.doors:
            door.die()
        self.doors.clear()
        for _ in range(DRAIN_ROUNDS_MAX):
            self._round()
            if self.host is not None and self.host.engine.drained():
                if not self.truth.missing():
                    break
                self._letters_retried()
        else:
            left = self.host.engine.figures() if self.host is not None else {}
            raise Broken("ends", f"{self.truth.missing()} records are not stored after {DRAIN_ROUNDS_MAX} rounds; host {left}")
        self._judge()

    def _round(self) -> None:
        try:
            self._all_work()
        except Broken:
            raise
        except Exception as fault:
            raise Broken("runs", f"{type(fault).__name__}: {fault}") from fault

    def _all_work(self) -> None:
        self.story.clock.pass_ms(300)
        for _ in range(3):
            self._wire_delivers()
            self._store_works()
        self._host_works(Host.seal)
        self._host_works(Host.send)
        while self.host is not None and self.host.waits_for_answers():
            self._answer()
        self.group.run_quietly()
        while self.host is not None and self.host.heard < len(self.broker.stored):
            self._hear()
        self._check()

    def _letters_retried(self) -> None:
        """What `wardline deadletter retry` does, once the workers have learned to read: their bytes go to Kafka again."""
        for digest in sorted(self.truth.letters.keys() & self.store.letters.keys()):
            came_in, data = self.store.letters[digest]
            self.story.fault("dead letter retried")
            self.broker.produce(self.broker.identity, own_partition(data, came_in, PARTITIONS), data)

    def _judge(self) -> None:
        self._host_dies()
        for _ in range(ROUNDS_AFTER):
            self._round()  # a box that was stored but not trimmed yet is sent again, and known
        table = self.store.frames.items()
        self.truth.judge({lane: {n: (row.digest, row.previous) for n, row in frames.items()} for lane, frames in table})


World._actions = {
    World._doors_work: 20,
    World._door_ends: 4,
    World._seal: 18,
    World._send: 14,
    World._answer: 20,
    World._hear: 16,
    World._group_works: 44,
    World._store_works: 30,
    World._group_changes: 8,
    World._host_killed: 2,
    World._power_fails: 1,
    World._disk_fails: 3,
    World._broker_fails: 1,
    World._store_fails: 4,
    World._repair: 10,
    World._wire_delivers: 4,
    World._frontiers_compacted: 2,
    World._attacker: 4,
}
