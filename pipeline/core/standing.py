"""What stands: the entries that are live, and what of their past still decides something.

    take(entry)   each entry once, in the order of epochs; a removal takes its key out

Pure. An entry is held as its canonical bytes: some 600 bytes of memory for a revocation, with all that is known of it.
"""

import heapq
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from schemas.control import HEAD_BYTES, POLICY, Entry, LiveDigest, leaf_of

HISTORY_MAX: Final = 10
"""Policy sets that a rollback can know of, the one in force included. The bundles of older ones are not kept."""

_DECODE: Final = json.JSONDecoder().decode


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyState:
    """A policy set that is or was in force."""

    epoch: int
    time_ns: int
    value: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of the bundle, hex."""
        return str(self.value["digest"])


class Standing:
    """The live entries and what of their past still matters."""

    def __init__(self, entries: Iterable[Entry] = (), *, epoch: int = 0, live_bytes_max: int = 0) -> None:
        """`entries` is everything so far, in order. `live_bytes_max` bounds what is live; 0 is no bound.

        `epoch` is where an empty log begins (above it).
        """
        self.epoch = epoch
        self._live: dict[str, tuple[int, bytes]] = {}
        self._digest = LiveDigest()
        self._bytes = 0
        self._bytes_max = live_bytes_max
        self._expiries: list[tuple[int, int, str]] = []
        self._identities: dict[str, str] = {}
        self._dropped: set[str] = set()
        self._policies: list[PolicyState] = []
        self._files = ""
        for entry in entries:
            self.take(entry, entry.payload())

    # -- what is known -----------------------------------------------------------------------------------------------

    @property
    def live(self) -> int:
        """Entries that are live."""
        return len(self._live)

    @property
    def live_bytes(self) -> int:
        """Bytes of all live entries as messages, keys included."""
        return self._bytes

    def digest(self) -> bytes:
        """Of the live entries."""
        return self._digest.digest()

    def get(self, key: str) -> Entry | None:
        """A live entry."""
        held = self._live.get(key)
        return entry_of(held[1]) if held else None

    def payload(self, key: str) -> bytes | None:
        """The canonical bytes of a live entry."""
        held = self._live.get(key)
        return held[1] if held else None

    def epoch_of(self, key: str) -> int:
        """The epoch of a live entry; 0 when there is none."""
        held = self._live.get(key)
        return held[0] if held else 0

    def epochs(self, after: int = 0) -> list[int]:
        """The epochs of all live entries above `after`, in order: an entry that is replaced goes to the end of the others."""
        return [epoch for epoch, _ in self._live.values() if epoch > after]

    def held(self) -> Iterator[tuple[str, int]]:
        """(key, epoch) of each live entry, in the order of their epochs."""
        for key, (epoch, _) in self._live.items():
            yield key, epoch

    def entries(self, kind: str = "", *, after: int = 0, limit: int = 0) -> list[Entry]:
        """The live entries of a kind (all without one) above an epoch, in the order of their epochs, `limit` at most."""
        found = (
            entry_of(payload) for key, (epoch, payload) in self._live.items()
            if epoch > after and (not kind or key.partition("/")[0] == kind)
        )  # fmt: skip
        return list(islice(found, limit or None))

    @property
    def policy(self) -> PolicyState | None:
        """The policy set in force."""
        return self._policies[-1] if self._policies else None

    @property
    def previous(self) -> PolicyState | None:
        """The set that a rollback returns to: the last one that was in force and is not the one that is now."""
        return next((one for one in reversed(self._policies) if one.digest != self._policies[-1].digest), None)

    @property
    def policies(self) -> tuple[PolicyState, ...]:
        """The sets whose bundles are kept, oldest first."""
        return tuple(self._policies)

    @property
    def files_digest(self) -> str:
        """The digest of what the policy files last made; empty when they never made anything."""
        return self._files

    def was_dropped(self, key: str, public: str) -> bool:
        """Whether a host's or worker's key was taken from it: only an operator gives it back."""
        return f"{key} {public}" in self._dropped

    # -- taking in ---------------------------------------------------------------------------------------------------

    def take(self, entry: Entry, payload: bytes) -> None:
        """Take one entry in, with its canonical bytes."""
        assert entry.epoch > self.epoch, f"epoch {entry.epoch} behind {self.epoch}"
        key, value = entry.key, entry.value
        self.epoch = entry.epoch
        before = self._live.pop(key, None)
        if before is not None:
            self._digest.remove(leaf_of(before[1]))
            self._bytes -= size_of(key, before[1])
            if entry.kind in ("agent", "enforcer", "worker"):
                self._forget(key, entry_of(before[1]), value)
        if value is None:
            return
        self._live[key] = entry.epoch, payload
        self._digest.add(leaf_of(payload))
        self._bytes += size_of(key, payload)
        if entry.kind in ("revocation", "exception"):
            if expires := value["expires"]:
                heapq.heappush(self._expiries, (expires, entry.epoch, key))
        elif entry.kind == "agent":
            for identity in identities_of(value):
                self._identities[identity] = entry.name
        elif entry.kind in ("enforcer", "worker"):
            self._dropped.discard(f"{key} {value['key']}")
        elif key == POLICY:
            state = PolicyState(epoch=entry.epoch, time_ns=entry.time_ns, value=value)
            self._policies = [*self._policies[1 - HISTORY_MAX :], state]
            if value["origin"] == "files":
                self._files = str(value["digest"])

    def _forget(self, key: str, before: Entry, value: Mapping[str, Any] | None) -> None:
        old = before.value or {}
        if before.kind == "agent":
            for identity in identities_of(old):
                self._identities.pop(identity, None)
        elif value is None or value["key"] != old["key"]:
            self._dropped.add(f"{key} {old['key']}")


def entry_of(payload: bytes) -> Entry:
    """Read canonical bytes back that were checked before."""
    said = _DECODE(payload.decode())
    return Entry(epoch=said["epoch"], key=said["key"], time_ns=said["time"], actor=said["actor"], value=said["value"],
                 tenant=said["tenant"])  # fmt: skip


def size_of(key: str, payload: bytes) -> int:
    """Bytes of an entry as a Kafka record, its key included."""
    return HEAD_BYTES + len(payload) + len(key.encode())


def identities_of(value: Mapping[str, Any]) -> list[str]:
    """The outside names of an agent, each as one text."""
    return [f"{issuer} {subject}" for issuer, subject in value["subs"]] + list(value["spiffe"])
