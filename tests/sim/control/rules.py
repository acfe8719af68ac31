"""What must hold, and the one who knows whether it does: `Truth` is told what was committed, said, decided and done.

    states     a decision is by a state that the journal had, or by one and what   (at each record)
               came later, where that came behind a gap
    fresh      ... within the freshness bound before the record                    (at each record)
    policies   ... and by policies that were wanted within it, or LATE_S before
    right      ... while its host was registered with its key                      (at each record)
    agents     ... and knowing the agents of that state, or of later entries       (at each record)
    act        what was let out was not revoked, by the door's board and as of a   (at each act)
               moment within the bound
    acks       after a door's word, each of its records obeys it; after a host's,  (at each record)
               those of doors that begin later do; what is acknowledged was made, and is on the disk
    report     what control reports as applied by a host, its doors have said, and obey
    word       a change that was answered for stands; one that was denied never comes
    forgets    no restart of a host takes its epoch or counter back                (at each start)
    runs       the shipped code meets no error that it does not foresee            (at each step)
    converges  healed, everybody has the journal's state and says so               (at the end)

The bound is `stale_ms` behind the writing of a heartbeat, and what a heartbeat shows was true when control made it: so a state
must have been the journal's when the oldest of those heartbeats was made that have come into the log within the bound, with a
counter that the host had not heard before it began. An entry of a change of several is a state of its own, over as soon as it
was made: they are applied one by one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.core.control import Change
from schemas.ack import Ack
from schemas.calls import RecordedCall
from schemas.control import PAUSE, POLICY, Entry
from schemas.records import Kind, Standing, Verdict
from schemas.selectors import caller_texts, target_texts
from tests.sim.story import Broken

REASON, POLICY_DIGEST = 17, 18
EPOCH, TEXTS = 13, 20


def allows(digest: str, agent: str) -> bool:
    """What a policy set of this history says: each has something of its own against one agent in four."""
    return bool(digest) and (int(digest[:8], 16) + ord(agent[-1])) % 4 != 0


@dataclass(slots=True)
class State:
    """What an epoch left behind."""

    revoked: frozenset[str]
    paused: bool
    policy: str
    hosts: frozenset[str]
    agents: frozenset[tuple[str, str]]
    """Names and stored secrets."""
    over_ns: int | None = None
    """When a later change was committed; None while it is the last."""

    def was_at(self, then_ns: int) -> bool:
        """Whether the journal had it at that time or later."""
        return self.over_ns is None or self.over_ns >= then_ns


@dataclass(slots=True)
class DoorTruth:
    """What was promised of one door."""

    host: str
    epoch: int = 0
    policies: tuple[str, int] | None = None
    """The policies of its last word, and the epoch at which it gave it."""
    open: dict[int, RecordedCall] = field(default_factory=dict)


class Truth:
    """Everything of one history that a rule is about."""

    def __init__(self, stale_ns: int, late_ns: int) -> None:
        self.stale_ns = stale_ns
        self.late_ns = late_ns
        self.states = [State(frozenset(), False, "", frozenset(), frozenset())]
        self.entries: list[Entry] = []
        self.ids: dict[str, int] = {}
        self.denied: set[str] = set()
        self.doors: dict[str, DoorTruth] = {}
        self.promised: dict[str, int] = {}
        """What each host, or control of it, has promised of all doors that begin from now on."""
        self.floors: dict[str, tuple[int, int]] = {}
        self.decided = 0
        self.between: Callable[[str], bool] = lambda _: False
        """Whether a board of that host has entries from behind a gap."""
        self._made: dict[int, int] = {}
        self._written: list[tuple[int, int]] = []
        self._begun: dict[str, list[tuple[int, int]]] = {}

    @property
    def epoch(self) -> int:
        """Of the last change."""
        return len(self.entries)

    # -- control -----------------------------------------------------------------------------------------------------

    def committed(self, request_id: str, change: Change, now_ns: int) -> None:
        """A change is in the journal."""
        if request_id in self.denied:
            raise Broken("word", f"request {request_id} was said not to be made, and is")
        self.states[-1].over_ns = now_ns
        for entry in change.entries:
            if entry.epoch != self.epoch + 1:
                raise Broken("word", f"epoch {entry.epoch} was made after epoch {self.epoch}")
            self.entries.append(entry)
            self.states.append(self._after(self.states[-1], entry))
        for state in self.states[change.entries[0].epoch : -1]:
            state.over_ns = now_ns
        self.ids[request_id] = change.entries[-1].epoch

    @staticmethod
    def _after(before: State, entry: Entry) -> State:
        revoked, paused, policy, hosts = before.revoked, before.paused, before.policy, before.hosts
        agents = before.agents
        if entry.kind == "revocation":
            revoked = revoked - {entry.name} if entry.value is None else revoked | {entry.name}
        elif entry.key == PAUSE:
            paused = entry.value is not None
        elif entry.key == POLICY:
            policy = str((entry.value or {}).get("digest", ""))
        elif entry.kind == "enforcer":
            hosts = hosts - {entry.name} if entry.value is None else hosts | {entry.name}
        elif entry.kind == "agent":
            agents = frozenset(one for one in agents if one[0] != entry.name)
            agents |= {(entry.name, entry.value["secret"])} if entry.value is not None else set()
        return State(revoked, paused, policy, hosts, agents)

    def answered(self, request_id: str, epoch: int | None) -> None:
        """Control has answered for a request: in force as this epoch, or None for never made."""
        if epoch is None:
            if request_id in self.ids:
                raise Broken("word", f"request {request_id} is epoch {self.ids[request_id]}, and was said not to be made")
            self.denied.add(request_id)
        elif self.ids.get(request_id) != epoch:
            raise Broken("word", f"request {request_id} was said to be epoch {epoch}, it is {self.ids.get(request_id)}")

    def beat_made(self, counter: int, now_ns: int) -> None:
        """Control has signed a heartbeat."""
        if counter <= max(self._made, default=-1):
            raise Broken("word", f"heartbeat {counter} was made after {max(self._made)}")
        self._made[counter] = now_ns

    def beat_written(self, counter: int, now_ns: int) -> None:
        """A heartbeat of control has come into the log, by whomever."""
        self._written.append((now_ns, counter))

    def proved_ns(self, host: str, now_ns: int) -> int | None:
        """What a host may believe now was true then; None when it may believe nothing."""
        heard: int | None = None
        for begun_ns, counter in self._begun[host]:
            if heard is None or begun_ns <= now_ns - self.stale_ns:
                heard = counter
        recent = [
            self._made[counter] for at, counter in self._written if at > now_ns - self.stale_ns and counter > (heard or 0)
        ]
        return min(recent, default=None)

    # -- hosts -------------------------------------------------------------------------------------------------------

    def host_begins(self, host: str, epoch: int, counter: int, now_ns: int) -> None:
        """A host starts with these floors."""
        self._not_below(host, epoch, counter)
        self.promised[host] = max(self.promised.get(host, 0), epoch)
        self._begun.setdefault(host, []).append((now_ns, counter))

    def host_keeps(self, host: str, epoch: int, counter: int) -> None:
        """A host's floors are on its disk."""
        self._not_below(host, epoch, counter)
        self.floors[host] = epoch, counter

    def _not_below(self, host: str, epoch: int, counter: int) -> None:
        before = self.floors.get(host, (0, 0))
        if epoch < before[0] or counter < before[1]:
            raise Broken("forgets", f"{host} has epoch {epoch} and heartbeat {counter}, it had {before}")

    def acked(self, ack: Ack, living: Sequence[str]) -> None:
        """A host signs its word on itself and its doors."""
        said = {door.boot: door for door in ack.doors}
        if set(said) != set(living):
            raise Broken("acks", f"{ack.host} speaks of doors {sorted(said)}, {sorted(living)} live")
        if max([ack.epoch, *(door.epoch for door in ack.doors)]) > self.epoch:
            raise Broken("acks", f"{ack.host} acknowledges epoch {ack.epoch} of {self.epoch}")
        kept, _ = self.floors.get(ack.host, (0, 0))
        if max([ack.epoch, *(door.epoch for door in ack.doors)]) > kept:
            raise Broken("acks", f"{ack.host} acknowledges epoch {ack.epoch}, its disk has {kept}")
        self.promised[ack.host] = max(self.promised.get(ack.host, 0), ack.epoch)
        for boot, door in said.items():
            known = self.doors[boot]
            known.epoch = max(known.epoch, door.epoch)
            if door.epoch:
                known.policies = door.policy_digest, door.epoch

    def reported(self, host: str, epoch: int, words: Sequence[int]) -> None:
        """Control says that a host and all of its doors have applied an epoch; `words` are what the doors have said."""
        if words and min(words) < epoch:
            raise Broken("report", f"{host} is reported to have applied epoch {epoch}, a door of it has said {min(words)}")
        self.promised[host] = max(self.promised.get(host, 0), epoch)
        for door in self.doors.values():
            if door.host == host:
                door.epoch = max(door.epoch, epoch)

    # -- doors -------------------------------------------------------------------------------------------------------

    def door_begins(self, boot: str, host: str) -> None:
        """A door has its folder and will look at the board from now on."""
        self.doors[boot] = DoorTruth(host, epoch=self.promised.get(host, 0))

    def recorded(
        self, boot: str, seq: int, call: RecordedCall, record: tuple[Any, ...], seen: tuple[int, bytes, int] | None,
        now_ns: int, looked_ns: int, agents: tuple[int, frozenset[tuple[str, str]]],
    ) -> None:  # fmt: skip
        """A door has recorded something; `seen` is its word then, and `looked_ns` when it last asked what is wanted.

        `agents` are those that it knows, and as of which epoch. Those of a later one may be some that came behind a gap.
        """
        door = self.doors[boot]
        texts = record[TEXTS]
        if record[0] == Kind.DECISION:
            self.decided += 1
            epoch, policy, _ = seen or (0, b"", 0)
            if record[EPOCH] < epoch or texts[POLICY_DIGEST] != policy.hex():
                raise Broken("acks", f"door {boot} decides by {record[EPOCH]} and {texts[POLICY_DIGEST][:8]}, it has said "
                             f"{epoch} and {policy.hex()[:8]}")  # fmt: skip
            self._decision(boot, door, call, record, texts, now_ns)
            self._policies(boot, door, texts[POLICY_DIGEST], looked_ns)
            if agents[0] <= record[EPOCH] and agents[1] != self.states[record[EPOCH]].agents:
                raise Broken("agents", f"door {boot} decides by epoch {record[EPOCH]} and knows the agents of {agents[0]}")
            if record[4] == Verdict.ALLOW:
                door.open[seq] = call
        else:
            self.ended(boot, record[1])

    def ended(self, boot: str, seq: int) -> None:
        """A call has its end, in its decision's record or as one of its own."""
        del self.doors[boot].open[seq]

    def acted(self, boot: str, standing: Standing, call: RecordedCall, now_ns: int) -> None:
        """A door does what it has recorded, and this is what its board says of it. Its record may wait for room."""
        if standing is not Standing.GO:
            raise Broken("act", f"door {boot} lets out what its board calls {standing.name.lower()}")
        self._act(boot, self.doors[boot].host, call, now_ns)

    def _decision(
        self, boot: str, door: DoorTruth, call: RecordedCall, record: tuple[Any, ...], texts: Sequence[str], now_ns: int
    ) -> None:
        epoch, reason, digest = record[EPOCH], texts[REASON], texts[POLICY_DIGEST]
        if not 0 <= epoch <= self.epoch:
            raise Broken("states", f"door {boot} decides by epoch {epoch}, the journal has {self.epoch}")
        state = self.states[epoch]
        expected = against(state, call) or ("permit" if permitted(digest, call) else "forbid")
        if reason != expected and not (self.between(door.host) and self._ahead(epoch, reason, digest, call)):
            raise Broken("states", f"door {boot} says `{reason}` by epoch {epoch}, that is `{expected}`")
        proved_ns = self.proved_ns(door.host, now_ns)
        if proved_ns is None or not state.was_at(proved_ns):
            over = "" if state.over_ns is None else f", over since {(now_ns - state.over_ns) // 1_000_000} ms"
            raise Broken("fresh", f"door {boot} of {door.host} decides by epoch {epoch}{over}")
        if not any(door.host in one.hosts and one.was_at(proved_ns) for one in self.states):
            raise Broken("right", f"door {boot} decides, {door.host} is not registered since long")
        if epoch < door.epoch:
            raise Broken("acks", f"door {boot} decides by epoch {epoch}, {door.epoch} was acknowledged for it")
        if door.policies is not None and digest != door.policies[0] and digest not in self._named_since(*door.policies):
            raise Broken("acks", f"door {boot} decides by policies {digest[:8]}, it has said {door.policies[0][:8]}")

    def _policies(self, boot: str, door: DoorTruth, digest: str, looked_ns: int) -> None:
        proved = [self.proved_ns(door.host, at) for at in (looked_ns, looked_ns - self.late_ns)]
        if not any(one.policy == digest and one.was_at(at) for one in self.states for at in proved if at is not None):
            raise Broken("policies", f"door {boot} decides by policies {digest[:8]}, not wanted since long")

    def _ahead(self, epoch: int, reason: str, digest: str, call: RecordedCall) -> bool:
        """Whether a later state says so: what came behind a gap is obeyed before its epoch is."""
        ours = "permit" if permitted(digest, call) else "forbid"
        return any(reason == (against(state, call) or ours) for state in self.states[epoch:])

    def _act(self, boot: str, host: str, call: RecordedCall, now_ns: int) -> None:
        proved_ns = self.proved_ns(host, now_ns)
        if proved_ns is None or not any(state.was_at(proved_ns) and not against(state, call) for state in self.states):
            raise Broken("act", f"door {boot} lets out what was revoked or paused all the time that it may not have known")

    def _named_since(self, said: str, epoch: int) -> set[str]:
        """What was named from the last time on that a state up to `epoch` named what a door has said."""
        at = max((number for number, state in enumerate(self.states[: epoch + 1]) if state.policy == said), default=epoch)
        return {state.policy for state in self.states[at:]}


def permitted(digest: str, call: RecordedCall) -> bool:
    """The AND over the agents of a chain."""
    return all(allows(digest, uid.split('"')[1]) for uid in call.chain if uid.startswith("Agent::"))


def against(state: State, call: RecordedCall) -> str:
    """What a state has against a call, whatever the policies say; empty for nothing."""
    if state.paused:
        return "paused"
    who = caller_texts(call.chain, session=call.session, token=call.token, key=call.key, grant=call.grant, issuer=call.issuer)
    return "revoked" if state.revoked & {*who, *target_texts(call.resource, "")} else ""
