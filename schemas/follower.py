"""What whoever follows the control log believes: a function of the messages that it has read, and of nothing else.

    begin -> joining: messages up to the end of the log, put into order by key and epoch
          -> a heartbeat at the end whose digest is that of what was read: synced
          -> each later entry is verified by itself; it must be the next one, or be what is known already
          -> an entry behind a gap: not synced until a heartbeat says that what lies in the gap left nothing behind
          -> a heartbeat whose digest differs: not synced, and the log must be read again from its beginning

While joining, signatures are not checked one by one: the heartbeat's signed digest vouches for all entries at once. Where it
does not, the next `begin` checks each (`strict`), so that a forged entry is refused and counted and what is left may be whole.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from schemas.control import HEARTBEAT, Entry, LiveDigest, Sealed, Verify, key_id_of, parse_entry
from schemas.errors import FrameFault
from schemas.vocabulary import shown

GONE_MAX: Final = 100_000
"""Removed keys whose epoch is remembered. Without it an old entry of one would come back; the digest would then differ."""


@dataclass(slots=True)
class _Held:
    entry: Entry
    leaf: bytes
    key_id: bytes
    sealed: Sealed | None
    """Only of a control key, which may have to vouch for another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A heartbeat that was accepted."""

    counter: int
    epoch: int
    time_ns: int
    whole: bool
    """Whether what was read is what control says is live: the proof of freshness."""


class Follower:
    """Pure: no clock, no IO. `live` may be read while `synced`, or to see what was last believed."""

    def __init__(self, pinned: Mapping[bytes, bytes], *, epoch: int = 0, counter: int = 0) -> None:
        """`pinned` is key id -> raw public key of the control keys that are trusted by file.

        `epoch` and `counter` are the highest that were ever accepted here: nothing below is accepted again.
        """
        self._pinned = dict(pinned)
        self._vouched: dict[bytes, bytes] = {}
        """Control keys of a session that was not whole, each announced with an accepted one: the next checks with them too."""
        self._floor = epoch
        self._strict = False
        self.counter = counter
        self.refused: dict[str, int] = {}
        """Reason -> how many messages."""
        self.synced = False
        self._reset()

    def _reset(self) -> None:
        self._held: dict[str, _Held] = {}
        self._gone: dict[str, int] = {}
        self._digest = LiveDigest()
        self._checks: dict[bytes, Verify] = {}
        for key_id, public in {**self._pinned, **self._vouched}.items():
            self._checks[key_id] = Ed25519PublicKey.from_public_bytes(public).verify
        self.epoch = 0
        """While synced, the epoch that was reached. While joining, the highest that was read, which nobody has vouched for."""

    # -- what is believed --------------------------------------------------------------------------------------------

    @property
    def live(self) -> int:
        """Entries that are live."""
        return len(self._held)

    @property
    def keys(self) -> dict[bytes, bytes]:
        """The control keys that are accepted, key id -> raw public key: what to pin from now on."""
        return dict(self._pinned)

    def get(self, key: str) -> Entry | None:
        """A live entry."""
        held = self._held.get(key)
        return held.entry if held else None

    def entries(self, kind: str = "") -> list[Entry]:
        """The live entries, of one kind where one is given, in the order of their epochs."""
        found = [held.entry for held in self._held.values() if not kind or held.entry.kind == kind]
        return sorted(found, key=lambda entry: entry.epoch)

    def digest(self) -> bytes:
        """Of the live entries."""
        return self._digest.digest()

    # -- reading -----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The log is read from its beginning again."""
        self._reset()
        self.synced = False

    def take(self, data: bytes | None, *, at_end: bool) -> Entry | Beat | None:
        """Read one message. `at_end` says that nothing behind it was in the log when it was fetched.

        Returns an entry that changes what is live, a heartbeat that was accepted, or None for what changes nothing (known, a
        heartbeat before the last while joining, or no value: Kafka's tombstone, which anybody could write). Raises FrameFault
        for what is refused; it is counted and changes nothing.
        """
        if data is None:
            return None
        try:
            sealed = parse_entry(data)
            return self._beat(sealed, at_end) if sealed.entry.key == HEARTBEAT else self._entry(sealed)
        except FrameFault as fault:
            self.refused[fault.reason] = self.refused.get(fault.reason, 0) + 1
            raise

    def _entry(self, sealed: Sealed) -> Entry | None:
        entry = sealed.entry
        held = self._held.get(entry.key)
        known = held.entry.epoch if held else self._gone.get(entry.key, 0)
        if held is not None and entry.epoch == known and sealed.leaf == held.leaf:
            return None
        if held is None and entry.value is None and entry.epoch == known:
            return None
        if self.synced or self._strict:
            self._check(sealed)
        if entry.epoch <= known:
            raise FrameFault("epoch", f"entry `{shown(entry.key)}` has epoch {entry.epoch}, epoch {known} is known")
        if self.synced and entry.epoch <= self.epoch:
            raise FrameFault("order", f"entry `{shown(entry.key)}` of epoch {entry.epoch} came behind epoch {self.epoch}")
        if entry.kind == "key":
            _public(entry)
        if self.synced and entry.epoch > self.epoch + 1:
            # compacted away, or missing: nobody may say that he has applied this epoch before that is known
            self.synced, self._strict = False, True
        self._put(sealed)
        return entry

    def _put(self, sealed: Sealed) -> None:
        entry = sealed.entry
        before = self._held.pop(entry.key, None)
        if before is not None:
            self._digest.remove(before.leaf)
        if entry.value is None:
            self._gone[entry.key] = entry.epoch
            while len(self._gone) > GONE_MAX:
                del self._gone[next(iter(self._gone))]
        else:
            self._gone.pop(entry.key, None)
            leaf = sealed.leaf
            self._held[entry.key] = _Held(entry, leaf, sealed.key_id, sealed if entry.kind == "key" else None)
            self._digest.add(leaf)
        self.epoch = max(self.epoch, entry.epoch)
        if entry.kind == "key" and self.synced:
            self._learn()

    def _named(self) -> dict[bytes, bytes]:
        said = [held.entry for held in self._held.values() if held.entry.kind == "key"]
        return {bytes.fromhex(entry.name): _public(entry) for entry in said} or self._pinned

    def _learn(self) -> None:
        """The control keys are those that the log names; before it names any, the pinned ones. A retired one stays so."""
        self._pinned = self._named()
        self._vouched.clear()
        self._checks = {key_id: Ed25519PublicKey.from_public_bytes(public).verify for key_id, public in self._pinned.items()}

    def _beat(self, sealed: Sealed, at_end: bool) -> Beat | None:
        value = sealed.entry.value or {}
        counter, digest, live = value.get("counter"), value.get("digest"), value.get("live")
        if type(counter) is not int or not isinstance(digest, str) or type(live) is not int:
            raise FrameFault("form", "a heartbeat has no counter, digest or number of live entries")
        if not self.synced and not at_end:
            return None  # of an earlier time; only the last one speaks about all that was read
        if counter <= self.counter:
            if self.synced or counter < self.counter:
                raise FrameFault("counter", f"a heartbeat has counter {counter}, {self.counter} was heard")
            return None  # the log is read again before the next one came
        self._check(sealed)
        if sealed.entry.epoch < max(self._floor, self.epoch if self.synced else 0):
            raise FrameFault("epoch", f"a heartbeat has epoch {sealed.entry.epoch}, {max(self._floor, self.epoch)} is known")
        whole = digest == self._digest.digest().hex() and live == self._digest.leaves
        if whole and not self.synced and sealed.key_id not in self._named():
            raise FrameFault("key", f"a heartbeat is signed with key {sealed.key_id.hex()}, which the log has retired")
        self.counter = counter
        if whole:
            if not self.synced:
                self.synced = True
                # the digest vouches for what is live, not for what is removed: a forged removal is forgotten here
                self._gone = {key: epoch for key, epoch in self._gone.items() if epoch <= sealed.entry.epoch}
                self._learn()
            # epochs that left nothing behind (a revocation and its end) are passed too
            self.epoch = self._floor = sealed.entry.epoch
            self._strict = False
        else:
            self.refused["digest"] = self.refused.get("digest", 0) + 1
            self.synced = False
            self._strict = True
            self._vouched = self._chained()
        return Beat(counter=counter, epoch=sealed.entry.epoch, time_ns=sealed.entry.time_ns, whole=whole)

    # -- signatures --------------------------------------------------------------------------------------------------

    def _check(self, sealed: Sealed) -> None:
        """Raises FrameFault `key` or `signature`."""
        check = self._checks.get(sealed.key_id) or self._announced(sealed.key_id, set())
        if check is None:
            name = shown(sealed.entry.key)
            raise FrameFault("key", f"entry `{name}` is signed with key {sealed.key_id.hex()}, which is not accepted")
        sealed.verify(check)

    def _announced(self, key_id: bytes, asked: set[bytes]) -> Verify | None:
        """A key that was announced by an entry signed with an accepted one, or with one that was announced in the same way."""
        held = self._held.get(f"key/{key_id.hex()}")
        if held is None or held.sealed is None or key_id in asked:
            return None
        check = self._checks.get(held.key_id) or self._announced(held.key_id, asked | {key_id})
        if check is None:
            return None
        held.sealed.verify(check)
        public = _public(held.entry)
        return Ed25519PublicKey.from_public_bytes(public).verify if key_id_of(public) == key_id else None

    def _chained(self) -> dict[bytes, bytes]:
        """The keys that were read and are announced: a log may have entries of a key before the entry of the key itself."""
        found = {}
        for held in [held for held in self._held.values() if held.entry.kind == "key"]:
            key_id = bytes.fromhex(held.entry.name)
            with contextlib.suppress(FrameFault):  # forged: the next session refuses it and counts it
                if self._announced(key_id, set()) is not None:
                    found[key_id] = _public(held.entry)
        return found


def _public(entry: Entry) -> bytes:
    value: Mapping[str, Any] = entry.value or {}
    if entry.value is None:
        return b""
    try:
        public = bytes.fromhex(value["public"])
        Ed25519PublicKey.from_public_bytes(public)
    except (KeyError, ValueError, TypeError) as fault:
        raise FrameFault("form", f"entry `{shown(entry.key)}` has no Ed25519 public key") from fault
    if key_id_of(public).hex() != entry.name:
        raise FrameFault("form", f"entry `{shown(entry.key)}` has the key of another name")
    return public
