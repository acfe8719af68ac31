"""The consumer group and the supervisor: who has which partition, who is thrown out without knowing, who is started again."""

from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.config import Config
from schemas.home import Home
from tests.sim.kafka import Broker
from tests.sim.rules import Truth
from tests.sim.store import Store
from tests.sim.story import Story
from tests.sim.worker import Worker


class Group:
    """One member per slot. A member that is stopped for too long becomes a zombie: it lives, its partitions are given away."""

    def __init__(
        self, story: Story, truth: Truth, broker: Broker, store: Store, home: Home, config: Config,
        keys: Mapping[str, Ed25519PrivateKey],
    ) -> None:  # fmt: skip
        self._story = story
        self._truth = truth
        self._broker = broker
        self._store = store
        self._home = home
        self._config = config
        self._keys = keys
        self._members: dict[str, Worker] = {}
        self._zombies: list[Worker] = []
        self._wanted = list(keys)
        self._dirty = True
        self._generation = 0

    def _all(self) -> list[Worker]:
        return [*self._members.values(), *self._zombies]

    def work(self) -> None:
        """One thing happens in one worker; with a member gone or new, the group first shares the partitions out again."""
        if self._dirty:
            self._rebalance()
            return
        able = [worker for worker in self._all() if not worker.stopped]
        if able:
            self._story.pick(able).work()
            self._bury()

    def _bury(self) -> None:
        for worker in self._all():
            if worker.why:
                self._gone(worker, worker.why)

    def _gone(self, worker: Worker, why: str) -> None:
        self._story.tell(f"{worker.name} ends: {why}")
        worker.end(why)
        if worker in self._zombies:
            self._zombies.remove(worker)
        else:
            del self._members[worker.name]
            self._dirty = True

    def _rebalance(self) -> None:
        """Everybody gives everything back, then takes its share. A stopped member is thrown out first: it does not know."""
        if not self._broker.up:
            return
        for worker in list(self._members.values()):
            if worker.stopped:
                worker.lost_place = True
                self._zombies.append(self._members.pop(worker.name))
                self._story.fault("zombie", worker.name)
        for worker in list(self._members.values()):
            worker.revoke()
        self._bury()
        for name in [name for name in self._members if name not in self._wanted]:
            self._gone(self._members[name], "its slot is gone")
        for name in self._wanted:
            if name not in self._members:
                self._members[name] = Worker(
                    name, self._story, self._truth, self._broker, self._store, self._home, self._config, self._keys[name]
                )
        self._dirty = False
        self._generation += 1
        members = [self._members[name] for name in sorted(self._members)]
        first = self._story.random.randrange(len(members))
        shares: dict[str, list[int]] = {worker.name: [] for worker in members}
        for partition in range(len(self._broker.calls)):
            shares[members[(first + partition) % len(members)].name].append(partition)
        for worker in members:
            worker.assign(self._generation, shares[worker.name])
        self._story.tell(f"group {self._generation}: {shares}")

    def change(self, faults: set[str]) -> None:
        """A worker is killed, stopped, continued; the partitions are shared out anew; a slot goes or comes back."""
        what = self._story.pick(("kill", "stop", "continue", "continue", "share", "resize"))
        living = [worker for worker in self._members.values() if not worker.stopped]
        if what == "kill" and "workers die" in faults and living:
            worker = self._story.pick(living)
            self._story.fault("worker died")
            self._gone(worker, "killed")
        elif what == "stop" and "zombies" in faults and living:
            worker = self._story.pick(living)
            worker.stopped = True
            self._dirty = self._dirty or self._story.chance(0.7)  # past its session time-out, or not
            self._story.fault("worker stopped", worker.name)
        elif what == "continue":
            for worker in self._all():
                if worker.stopped and self._story.chance(0.6):
                    worker.stopped = False
                    self._story.tell(f"{worker.name} goes on")
        elif what == "share" and "rebalance" in faults:
            self._dirty = True
            self._story.fault("rebalance")
        elif what == "resize" and "rebalance" in faults:
            self._wanted = self._story.pick((list(self._keys), list(self._keys)[:1]))
            self._dirty = True
            self._story.fault("workers resized", str(len(self._wanted)))

    def heal(self) -> None:
        """Nobody is stopped any more."""
        for worker in self._all():
            worker.stopped = False

    def run_quietly(self) -> None:
        """A round without faults: everybody works, and the store answers at once."""
        if self._dirty:
            self._rebalance()
        for _ in range(4):
            for worker in self._all():
                worker.work()
            while self._store.inbox:
                self._store.execute(self._store.inbox[0])
            self._bury()
        for worker in self._members.values():
            worker.publish()

    def end(self) -> None:
        """The history is over."""
        for worker in self._all():
            worker.end("the history is over")
