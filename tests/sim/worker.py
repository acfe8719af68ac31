"""Two workers in one consumer group: the shipped intake, ledger and batch inside a shell that does what Faust's is told to do.

A worker fetches in offset order, judges, lets the batch fill, inserts, and only then acknowledges, commits and publishes the
frontier. A revoke waits for the running insert. A worker can be killed, and stopped for so long that the group gives its
partitions away: what it does when it goes on is what a zombie does. It leaves when it hears that it has lost its place, when
the fence refuses it, and when an offset is missing.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipeline.core.batch import Batch
from pipeline.core.intake import Accepted, Dead, Duplicate, Judged, PutOff, judge
from pipeline.core.ledger import Ledger
from pipeline.core.rows import FrameRow, insert_table, insert_token
from schemas.errors import FrameFault
from schemas.frame import Lane, parse_frame
from schemas.frontier import Frontier
from schemas.home import Home
from schemas.keys import Trust
from tests.sim.kafka import Broker
from tests.sim.rules import Truth
from tests.sim.store import Ambiguous, Request, Store
from tests.sim.story import Broken, Story

RECORDS_MAX = 60
QUIET_NS = 150_000_000
TRIES_MAX = 4
"""Answers without a word of the store; after that the worker ends, and another start begins at the committed offset."""


@dataclass(slots=True)
class Entry:
    """One delivered message."""

    partition: int
    offset: int
    judged: Judged


class Left(Exception):
    """The worker process ends by itself; the text says why."""


class Worker:
    """Everything that is in the memory of one worker process."""

    def __init__(
        self, name: str, story: Story, truth: Truth, broker: Broker, store: Store, home: Home, key: Ed25519PrivateKey
    ) -> None:
        self.name = name
        self.stopped = False
        self.lost_place = False
        """Whether the group has given its partitions away without its knowing."""
        self.epochs: dict[int, int] = {}
        self.request: Request | None = None
        self._identity = broker.identity
        self._story = story
        self._truth = truth
        self._broker = broker
        self._store = store
        self._sign = key.sign
        self._trust = Trust(home.trusted("hosts"))
        self._ledger = Ledger()
        self._batch: Batch[Entry] = Batch(records_max=RECORDS_MAX, quiet_ns=QUIET_NS)
        self._inserting: list[Entry] = []
        self._tries = 0
        self._position: dict[int, int] = {}
        self._window: dict[int, deque[int]] = {}
        self._done: dict[int, set[int]] = {}

    # -- assignment --------------------------------------------------------------------------------------------------

    def revoke(self) -> bool:
        """Give everything back: wait for the running insert, drop what was only buffered. False: it is still running."""
        while self.request is not None:
            if self.request in self._store.inbox:
                self._store.execute(self.request)
            if self.request.answer == "failed" and not self._store.up:
                return False  # the revoke waits as long as the insert does
            self.answered()
        self._batch.cut()
        self._ledger.clear()
        self.epochs.clear()
        return True

    def assign(self, partitions: list[int]) -> None:
        """Take partitions over: first the fence, then what the store has; then no insert of the owner before can come in."""
        try:
            for partition in partitions:
                self.epochs[partition] = self._store.take_over(partition)
                self._ledger.take(partition, self._store.lane_state(partition))
                log = self._broker.calls[partition]
                committed = self._broker.committed.get(partition, 0)
                if committed < log.first:
                    self._story.fault("offsets lost by retention")
                self._position[partition] = max(committed, log.first)
                self._window[partition] = deque()
                self._done[partition] = set()
        except Ambiguous as fault:
            raise Left(str(fault)) from fault

    # -- work --------------------------------------------------------------------------------------------------------

    def work(self) -> None:
        """Fetch a message, or begin an insert, or hear about one. Raises Left."""
        if self.lost_place and self._story.chance(0.3):
            raise Left("heard that another one has its partitions")
        if self.request is not None and self.request.answer:
            self.answered()
            return
        if self.request is None and self._batch.due(self._story.clock.monotonic_ns()):
            self._insert()
            return
        for _ in range(self._story.random.randint(1, 8)):
            if not self._fetch():
                break

    def _fetch(self) -> bool:
        broker = self._broker
        if not broker.up or not self.epochs:
            return False
        if broker.identity != self._identity:
            raise Left("the broker is another one")
        partition = self._story.pick(sorted(self.epochs))
        log, offset = broker.calls[partition], self._position[partition]
        if offset < log.first:
            self._story.fault("gap in the offsets")
            raise Left(f"offsets {offset}..{log.first - 1} of partition {partition} are gone")
        if offset == log.end:
            return False
        data = log.messages[offset - log.first]
        judged = judge(data, partition, self._trust.verifier, self._ledger)
        records = judged.head.records if isinstance(judged, Accepted) else 0
        if not self._batch.takes(records + 1, len(data)):
            return False
        self._position[partition] += 1
        self._window[partition].append(offset)
        self._story.tell(f"{self.name} {partition}/{offset}: {_name(judged)}")
        if isinstance(judged, (Duplicate, PutOff)):
            self._story.seen[type(judged).__name__] += 1
        if isinstance(judged, Dead):
            self._story.seen[f"dead: {judged.reason}"] += 1
        if isinstance(judged, Accepted):
            self._ledger.begin(judged.head.lane, judged.head.frame_no, judged.digest, judged.head.previous)
        self._batch.add(Entry(partition, offset, judged), records + 1, len(data), self._story.clock.monotonic_ns())
        return True

    def _insert(self) -> None:
        self._inserting = self._batch.cut()
        self._tries = 0
        frames = [row for row in map(_frame, self._inserting) if row is not None]
        if not frames:
            self._inserted()  # copies and refusals only: nothing to write
            return
        now_s = int(self._story.clock.time())
        self.request = Request(self.name, insert_token(frames, now_s), insert_table(frames, now_s), dict(self.epochs))
        self._store.inbox.append(self.request)

    def answered(self) -> None:
        """The store has answered, or the answer is lost."""
        request = self.request
        assert request is not None
        if request.answer == "fenced":
            if not self.lost_place:
                raise Broken("drain", f"{self.name} holds its place and is fenced")
            raise Left("fenced")
        if request.answer == "failed":
            self._tries += 1
            if self._tries > TRIES_MAX:
                raise Left("the store does not answer")
            self.request = Request(request.owner, request.token, request.rows, request.fence)
            self._store.inbox.append(self.request)
            return
        self.request = None
        self._inserted()

    def _inserted(self) -> None:
        """What is in the table may be acknowledged, committed and told, in this order."""
        lanes: dict[Lane, None] = {}
        for entry in self._inserting:
            judged = entry.judged
            if isinstance(judged, Accepted):
                self._ledger.stored(judged.head.lane, judged.head.frame_no)
                lanes[judged.head.lane] = None
            elif isinstance(judged, Duplicate):
                lanes[judged.lane] = None
            self._done[entry.partition].add(entry.offset)
        self._inserting = []
        self._commit()
        for lane in lanes:
            self._publish(lane)

    def _commit(self) -> None:
        """Commit the head run of what was delivered and acknowledged; a member that lost its place is refused."""
        if self.lost_place or not self._broker.up or self._broker.identity != self._identity:
            return
        for partition, window in self._window.items():
            done, last = self._done[partition], None
            while window and window[0] in done:
                last = window.popleft()
                done.discard(last)
                self._may_commit(partition, last)
            if last is not None:
                self._broker.committed[partition] = last + 1

    def _may_commit(self, partition: int, offset: int) -> None:
        """Rule `offsets`."""
        log = self._broker.calls[partition]
        if offset < log.first:
            return
        try:
            frame = parse_frame(log.messages[offset - log.first])
            check = self._trust.verifier(frame.head.lane.host)
            assert check is not None
            frame.verify(check)
        except FrameFault:
            return
        head = frame.head
        if head.lane.partition == partition and head.frame_no not in self._store.frames[head.lane]:
            raise Broken("offsets", f"{partition}/{offset} is committed, {head.lane.text} frame {head.frame_no} is not stored")

    def _publish(self, lane: Lane) -> None:
        frame_no = self._ledger.frontier(lane)
        if frame_no == 0 or not self._broker.up:
            return
        self._truth.frontier_told(lane, frame_no, self._store.frontier(lane), self.name)
        said = Frontier(lane=lane, frame_no=frame_no, stored_ns=self._story.clock.time_ns(), worker=self.name)
        self._broker.stored.append((lane.text.encode(), said.encode(self._sign)))


def _name(judged: Judged) -> str:
    match judged:
        case Accepted(head=head):
            return f"accepted {head.lane.text} frame {head.frame_no}"
        case Dead(reason=reason):
            return f"dead, {reason}"
        case Duplicate(lane=lane, frame_no=frame_no) | PutOff(lane=lane, frame_no=frame_no):
            return f"{type(judged).__name__.lower()} {lane.text} frame {frame_no}"


def _frame(entry: Entry) -> FrameRow | None:
    """What is written for a message; None when nothing is."""
    judged = entry.judged
    if not isinstance(judged, Accepted):
        return None
    return FrameRow(
        head=judged.head, digest=judged.digest, signed=judged.signed, wire_bytes=judged.wire_bytes, offset=entry.offset,
        flag=judged.flag, batch=judged.batch,
    )  # fmt: skip


class Group:
    """The consumer group, and the supervisor that starts each slot again."""

    def __init__(
        self, story: Story, truth: Truth, broker: Broker, store: Store, home: Home, keys: Mapping[str, Ed25519PrivateKey]
    ) -> None:
        self._story = story
        self._truth = truth
        self._broker = broker
        self._store = store
        self._home = home
        self._keys = keys
        self.members: dict[str, Worker] = {}
        self.zombies: list[Worker] = []
        self._dirty = True
        self._wanted = list(keys)

    def work(self) -> None:
        """One thing happens in one worker; with a member gone or new, the group first shares the partitions out again."""
        if self._dirty:
            self._rebalance()
            return
        able = [worker for worker in (*self.members.values(), *self.zombies) if not worker.stopped]
        if able:
            self._let(self._story.pick(able))

    def _let(self, worker: Worker) -> None:
        try:
            worker.work()
        except Left as why:
            self._gone(worker, str(why))

    def _gone(self, worker: Worker, why: str) -> None:
        self._story.tell(f"{worker.name} ends: {why}")
        if worker in self.zombies:
            self.zombies.remove(worker)
        else:
            del self.members[worker.name]
            self._dirty = True

    def _rebalance(self) -> None:
        """Everybody gives everything back, then takes its share. A stopped member is thrown out first: it does not know."""
        for worker in list(self.members.values()):
            if worker.stopped:
                worker.lost_place = True
                self.zombies.append(self.members.pop(worker.name))
                self._story.fault("zombie", worker.name)
        if not self._broker.up:
            return
        for worker in list(self.members.values()):
            try:
                if not worker.revoke():
                    return
            except Left as why:
                self._gone(worker, str(why))
                return
        for name in self._wanted:
            if name not in self.members:
                self.members[name] = Worker(
                    name, self._story, self._truth, self._broker, self._store, self._home, self._keys[name]
                )
        self._dirty = False
        members = [self.members[name] for name in sorted(self.members)]
        for at, worker in enumerate(members):
            share = [p for p in range(len(self._broker.calls)) if p % len(members) == at]
            try:
                worker.assign(share)
            except Left as why:
                self._gone(worker, str(why))
        self._story.tell(f"group: {', '.join(self.members)}")

    def change(self, faults: set[str]) -> None:
        """A worker is killed, stopped, continued; a slot is taken away or comes back."""
        what = self._story.pick(("kill", "stop", "continue", "continue", "share", "resize"))
        living = [worker for worker in self.members.values() if not worker.stopped]
        if what == "kill" and "workers die" in faults and living:
            worker = self._story.pick(living)
            self._gone(worker, "killed")
            self._story.fault("worker died", "with an insert on its way" if worker.request is not None else "")
        elif what == "stop" and "zombies" in faults and living:
            worker = self._story.pick(living)
            worker.stopped = True
            self._dirty = self._dirty or self._story.chance(0.7)  # past its session time-out, or not
            self._story.fault("worker stopped", worker.name)
        elif what == "continue":
            for worker in (*self.members.values(), *self.zombies):
                if worker.stopped and self._story.chance(0.6):
                    worker.stopped = False
                    self._story.tell(f"{worker.name} goes on")
        elif what == "share" and "rebalance" in faults:
            self._dirty = True
        elif what == "resize" and "rebalance" in faults:
            self._wanted = self._story.pick((list(self._keys), list(self._keys)[:1]))
            for name in [name for name in self.members if name not in self._wanted]:
                worker = self.members[name]
                try:
                    if not worker.stopped and worker.revoke():
                        self._gone(worker, "leaves")
                except Left as why:
                    self._gone(worker, str(why))
            self._dirty = True
            self._story.fault("workers resized", str(len(self._wanted)))

    def run_quietly(self) -> None:
        """A round without faults: everybody works."""
        for worker in (*self.members.values(), *self.zombies):
            worker.stopped = False
        for _ in range(8):
            if self._dirty:
                self._rebalance()
            for worker in (*self.members.values(), *self.zombies):
                self._let(worker)
                if worker.request is not None and worker.request in self._store.inbox:
                    self._store.execute(worker.request)


