"""How a host obeys control: messages of the control log in; the board, and what must be on the disk, out.

    begin                                  the log is read from its beginning; the board keeps what it has
    a heartbeat that agrees, not synced    the board gets the whole state in one step
    an entry, synced                       the board gets it at once
    an entry behind a gap                  the board gets it, and keeps its epoch until a heartbeat agrees
    a heartbeat that agrees                once its counter is on the disk: the board is fresh until it was written + stale_ns
    a heartbeat that does not agree        `broken`: begin again; the board keeps what it has while that is fresh
    anything refused                       counted; nothing changes
    the board has no room                  it is stale; `broken`: begin again, and give it the whole state
    an agent comes, changes or goes        its host's agents file says so before the board has the epoch. So a door that
                                           reads the file when the board has changed knows the agents of what it acknowledges
    the file cannot be written             as where the board has no room

Freshness is given only while this host is registered with its own key and decides by the policies that control names: a host
that may not publish, or still runs the policies before, is stale when what it last proved is too old. An epoch is acknowledged
only when it is on the disk, so that no restart can be shown an older state than one that was acknowledged.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Final, Protocol

from schemas.ack import Ack, DoorAck
from schemas.agents import Roll
from schemas.control import PAUSE, POLICY, Entry
from schemas.errors import FrameFault, OperatorFault, PeerFault
from schemas.follower import Beat, Follower
from schemas.limits import AGENTS_MAX, DOORS_MAX

FORM: Final = "wardline-feed-1"
REVOCATION: Final = "revocation/"


class BoardLike(Protocol):
    """The writer's side of a board (`ext.board.BoardWriter`)."""

    def change(
        self, revoke: Iterable[tuple[str, int]], lift: Iterable[str], *, epoch: int, paused: bool, policy: bytes
    ) -> None:
        """One atomic step for readers."""

    def replace(self, revoked: Iterable[tuple[str, int]], *, epoch: int, paused: bool, policy: bytes) -> None:
        """The whole set anew, in one step."""

    def fresh(self, until_ns: int) -> None:
        """Readers may believe it until then (CLOCK_MONOTONIC)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Floors:
    """What a host keeps of control over a restart (`feed.json`). Keys are hex, raw Ed25519."""

    epoch: int = 0
    """The highest that was ever in force here: no state before it is accepted."""
    counter: int = 0
    """The last heartbeat that was accepted: only a higher one shows that anything is fresh."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """The control keys, by key id: in place of those that are pinned by file once control has changed its key."""
    workers: Mapping[str, str] = field(default_factory=dict)
    """Whose word on what is stored is believed before control is heard again."""
    enforcers: Mapping[str, str] = field(default_factory=dict)
    """The hosts of this process that control has registered."""

    def encode(self) -> bytes:
        """The file's bytes."""
        return json.dumps({"form": FORM, **asdict(self)}, sort_keys=True).encode()


def parse_floors(data: bytes, name: str) -> Floors:
    """Read the file. Raises OperatorFault that begins with `name` and says what to do."""
    try:
        said = json.loads(data)
        if said.pop("form") != FORM or said.keys() != {one.name for one in fields(Floors)}:
            raise ValueError("fields")
        floors = Floors(**said)
        if not all(type(number) is int and number >= 0 for number in (floors.epoch, floors.counter)):
            raise ValueError("numbers")
        for held in (floors.keys, floors.workers, floors.enforcers):
            if not all(len(bytes.fromhex(public)) == 32 for public in held.values()):
                raise ValueError("keys")
        for key_id in floors.keys:
            bytes.fromhex(key_id)
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise OperatorFault(
            f"{name}: is damaged, so nobody knows how far this host had obeyed; compare its epoch in `wardline enforcer list`"
            " with control's, then remove the file to accept what control says now"
        ) from fault
    return floors


class Obey:
    """The state of one host. Times are given: `*_ns` are CLOCK_MONOTONIC, `wall_ns` is since 1970."""

    def __init__(
        self, follower: Follower, board: BoardLike, *, host: str, key: str, stale_ns: int, floors: Floors | None = None,
        write_agents: Callable[[bytes], None],
    ) -> None:  # fmt: skip
        """`key` is the host's own public key, hex. `floors` is what the last run kept; the follower must have its numbers.

        `write_agents` replaces the file that the doors know the agents by; it raises PeerFault where it cannot.
        """
        self.follower = follower
        self.host = host
        self.state = "joining"
        """As `tick` found it: `joining` until the first time fresh, then `ready` or `stale`."""
        self.trouble = ""
        """Why the log cannot be read now: set by whoever reads it."""
        self.unkept = ""
        """Why nothing can be kept on the disk now: set by whoever writes it."""
        self.broken = False
        """The log does not lead to the state that control has signed: `begin`, and read it again."""
        self.epoch = 0
        """What the board has."""
        self.policy = ""
        """The digest of the policies that the board points at."""
        self.paused = False
        self.applied_ns = 0
        """When the board got this epoch, since 1970."""
        self.beat_ns = 0
        """The time of the last heartbeat that agreed, by control's clock."""
        self.until_ns = 0
        """The board is fresh until then."""
        self._board = board
        self._write_agents = write_agents
        self._roll = Roll()
        self._key = key
        self._stale_ns = stale_ns
        self._kept = floors or Floors()
        self._keys = dict(self._kept.keys)
        self._workers = dict(self._kept.workers)
        self._enforcers = dict(self._kept.enforcers)
        self._wanted: Entry | None = None
        self._joined = False
        self._counter = 0
        self._beats: deque[tuple[int, int]] = deque()
        """Heartbeats that agreed and are not on the disk yet: counter, and when it was written at the earliest."""
        self._sure_ns = 0
        """When the last of those that are on the disk was written."""
        self._refusal = ""
        self._differs = False
        self._gap = False
        """Entries are verified and obeyed, but something may lie between them and the epoch that is acknowledged."""
        self._unfit = ""
        """Why the board lacks something."""

    # -- what is believed --------------------------------------------------------------------------------------------

    @property
    def wanted_policy(self) -> str:
        """The digest that `policy/main` names; empty when there is none."""
        digest = (self._wanted.value or {}).get("digest", "") if self._wanted else ""
        return digest if isinstance(digest, str) else ""

    @property
    def wanted(self) -> Mapping[str, object]:
        """What `policy/main` says of the bundle: digest, bytes, packed, chunks."""
        return (self._wanted.value if self._wanted else None) or {}

    @property
    def kept_epoch(self) -> int:
        """The highest epoch that is on the disk."""
        return self._kept.epoch

    def registered(self, host: str, key: str) -> bool:
        """Whether control has registered a host under this key: by its last word, or by what the last run kept."""
        return self._enforcers.get(host) == key

    def worker(self, name: str) -> bytes | None:
        """The public key of a worker that control has registered."""
        held = self._workers.get(name)
        return bytes.fromhex(held) if held else None

    # -- reading the log ---------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The log is read from its beginning."""
        self.follower.begin()
        self.broken = self._gap = False

    def message(self, data: bytes | None, *, at_end: bool, written_ns: int, wall_ns: int) -> None:
        """One message of the log; `at_end` as for `Follower.take`.

        `written_ns` is a time at which the message was certainly not in the log yet, 0 when none is known: a heartbeat shows
        what was true after it, however long it lay in some buffer. Raises FrameFault for what is refused; nothing changed.
        """
        was = self.follower.synced
        try:
            got = self.follower.take(data, at_end=at_end)
        except FrameFault as fault:
            self._refusal = str(fault)
            raise
        if isinstance(got, Entry):
            self._gap = self._gap or (was and not self.follower.synced)
            if self.follower.synced or self._gap:
                self._apply(got, wall_ns)
        elif got is not None:
            self._beat(got, was, written_ns, wall_ns)

    def _beat(self, beat: Beat, was: bool, written_ns: int, wall_ns: int) -> None:
        self._differs = not beat.whole
        self._gap = False
        if not beat.whole:
            self.broken = True
            return
        self._refusal = ""
        if not was:
            self._join(wall_ns)
        elif self.follower.epoch > self.epoch:
            self._change((), (), wall_ns)
        self._counter, self.beat_ns = beat.counter, beat.time_ns
        self._beats.append((beat.counter, written_ns))

    def _join(self, wall_ns: int) -> None:
        """The whole state, in one step. The policies stay those that were in force until the others are here."""
        revoked: list[tuple[str, int]] = []
        self._workers, self._enforcers, self._wanted, self.paused = {}, {}, None, False
        self._roll.clear()
        for entry in self.follower.entries():
            if entry.kind == "revocation":
                revoked.append((entry.name, _not_before(entry)))
            else:
                self._note(entry)
        self._keys = self._named_keys()
        self._refile()
        if not self._agents_written():
            return
        try:
            self._board.replace(revoked, epoch=self.follower.epoch, paused=self.paused, policy=bytes.fromhex(self.policy))
        except PeerFault as fault:
            self._fail(fault)
            return
        self._joined, self._unfit = True, ""
        self.epoch, self.applied_ns = self.follower.epoch, wall_ns

    def _apply(self, entry: Entry, wall_ns: int) -> None:
        revoke, lift = [], []
        if entry.kind == "revocation":
            if entry.value is None:
                lift.append(entry.name)
            else:
                revoke.append((entry.name, _not_before(entry)))
        else:
            self._note(entry)
            if entry.kind == "key" and not self._gap:
                self._keys = self._named_keys()
        self._refile()
        if entry.kind == "agent" and not self._agents_written():
            return
        self._change(revoke, lift, wall_ns)
        self._grant()

    def _note(self, entry: Entry) -> None:
        """What is not on the board entry by entry."""
        if entry.key == PAUSE:
            self.paused = entry.value is not None
        elif entry.key == POLICY:
            self._wanted = None if entry.value is None else entry
        elif entry.kind == "agent":
            self._roll.take(entry)
        elif entry.kind in ("worker", "enforcer"):
            held = self._workers if entry.kind == "worker" else self._enforcers
            public = entry.registered.hex()
            if public:
                held[entry.name] = public
            else:
                held.pop(entry.name, None)

    def _refile(self) -> None:
        """Without policies nothing is permitted, and there is nothing to wait for."""
        if not self.wanted_policy:
            self.policy = ""

    def _change(self, revoke: Iterable[tuple[str, int]], lift: Iterable[str], wall_ns: int) -> None:
        if self._unfit:
            return  # it lacks something, and is stale until it gets everything
        epoch = self.epoch if self._gap else self.follower.epoch
        try:
            self._board.change(revoke, lift, epoch=epoch, paused=self.paused, policy=bytes.fromhex(self.policy))
        except PeerFault as fault:
            self._fail(fault)
            return
        if epoch > self.epoch:
            self.epoch, self.applied_ns = epoch, wall_ns

    def _agents_written(self) -> bool:
        """Have the doors know the agents before the board says that they do; where that cannot be, the board is stale.

        A crash behind it: the doors know some agents a little early, by a board that nobody keeps fresh any more.
        """
        try:
            if len(self._roll) > AGENTS_MAX:
                raise PeerFault(f"there are {len(self._roll)} agents, limit is {AGENTS_MAX}")
            self._write_agents(self._roll.encode(self.follower.epoch))
        except PeerFault as fault:
            self._board.fresh(0)
            self._fail(fault)
            return False
        return True

    def _fail(self, fault: PeerFault) -> None:
        """The board could not be changed and is stale: the whole state is read and given to it again."""
        self._unfit, self.broken, self.until_ns = str(fault), True, 0

    def _named_keys(self) -> dict[str, str]:
        return {key_id.hex(): public.hex() for key_id, public in self.follower.keys.items()}

    # -- what comes from outside the log -----------------------------------------------------------------------------

    def policy_ready(self, digest: str) -> None:
        """The bundle of this digest is on the disk, verified: doors decide by it from now on, if it is still the wanted one."""
        if digest == self.wanted_policy and digest != self.policy:
            self.policy = digest
            try:
                self._board.change((), (), epoch=self.epoch, paused=self.paused, policy=bytes.fromhex(digest))
            except PeerFault as fault:
                self._fail(fault)
            self._grant()

    def floors(self, hosts: Iterable[str] = ()) -> Floors | None:
        """What must be on the disk now; None when it is. `hosts` are those that this process seals for, beside its own."""
        if not self._joined:
            return None
        own = {name: self._enforcers[name] for name in sorted({self.host, *hosts}) if name in self._enforcers}
        now = Floors(epoch=max(self.epoch, self._kept.epoch), counter=max(self._counter, self._kept.counter), keys=self._keys,
                     workers=dict(self._workers), enforcers=own)  # fmt: skip
        return None if now == self._kept else now

    def kept(self, floors: Floors) -> None:
        """They are on the disk."""
        self._kept = floors
        while self._beats and self._beats[0][0] <= floors.counter:
            self._sure_ns = max(self._sure_ns, self._beats.popleft()[1])
        self._grant()

    def _grant(self) -> None:
        """Let the board be fresh for as long as what was proved allows it."""
        until = self._sure_ns + self._stale_ns
        if self._unfit or not self._sure_ns or until <= self.until_ns:
            return
        if self.policy == self.wanted_policy and self._own_right():
            self.until_ns = until
            self._board.fresh(until)

    def _own_right(self) -> bool:
        return self.registered(self.host, self._key)

    def tick(self, now_ns: int) -> None:
        """Look at the clock."""
        if now_ns < self.until_ns:
            self.state = "ready"
        elif self.state == "ready":
            self.state = "stale"

    # -- what is said ------------------------------------------------------------------------------------------------

    @property
    def why(self) -> str:
        """Why it is not ready, in one line; empty when it is. It has the word `digest` where reading it all again may help."""
        if self.state == "ready":
            return ""
        if self.trouble:
            return self.trouble
        if self._differs:  # before a fault of our own disk, which may be over: control acts on this one
            return "the control log does not have the digest that its heartbeat says: an entry is missing or altered"
        if known := self._unfit or self.unkept:
            return known
        if self._refusal:
            return f"no heartbeat that can be believed; the last thing refused: {self._refusal}"
        if not self.follower.synced:
            return "reads the control log"
        if not self._own_right():
            return f"control has not registered host `{self.host}` with its key"
        if self.policy != self.wanted_policy:
            return f"the policy bundle of digest {self.wanted_policy[:12]} is not here yet"
        return "no new heartbeat of control"

    def ack(
        self, *, boot: str, doors: Iterable[tuple[str, int, bytes, int]], lag_records: int, said_ns: int, stopped: bool = False
    ) -> Ack:
        """What this host says of itself and of each living door (boot, epoch, policy digest, when applied)."""
        kept = self._kept.epoch if self._joined else 0
        return Ack(
            host=self.host, boot=boot, state="stopped" if stopped else self.state, why="" if stopped else self.why,
            epoch=min(self.epoch, kept), counter=self._counter, policy_digest=self.policy, applied_ns=self.applied_ns,
            said_ns=said_ns, lag_records=lag_records,
            doors=tuple(
                DoorAck(boot=name, epoch=min(epoch, kept), policy_digest=policy.hex(), applied_ns=applied_ns)
                for name, epoch, policy, applied_ns in sorted(doors)[:DOORS_MAX]
            ),
        )  # fmt: skip


def _not_before(entry: Entry) -> int:
    """Seconds; what is no number revokes everything."""
    said = (entry.value or {}).get("not_before", 0)
    return said if type(said) is int and said >= 0 else 0
