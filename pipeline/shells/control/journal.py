"""Control's journal: every change in order, in one SQLite file that is on the disk before anything is said of a change.

    changes   no, id of the request, actor, time, digest of the request, result, first and last epoch, chain
    entries   epoch, key, payload (canonical bytes), seal (key id, signature, check of both)
    bundles   digest, packed bytes, of the policy sets that a rollback can return to

A change's `chain` is SHA-256 over the chain before it, its row and its payloads. `head.json` has the last epoch and chain that
were answered for, and the highest heartbeat counter that may be used: it is written after each commit, so the journal may be
longer than it says (a crash between the two) and never shorter.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.core.control import Change, Log
from pipeline.core.standing import entry_of
from schemas.control import KEY_ID_BYTES, MAGIC, SIGNATURE_BYTES
from schemas.errors import OperatorFault, PeerFault
from schemas.process import private_dir, write_atomic

FORM: Final = 1
APPLICATION: Final = 0x574C4354
"""`WLCT`, which SQLite keeps in the head of the file."""

START: Final = hashlib.sha256(b"wardline control journal 1").digest()
CHECK_BYTES: Final = 8
ASK_MAX: Final = 500

_SCHEMA: Final = (
    "CREATE TABLE changes (no INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, actor TEXT NOT NULL, time INTEGER NOT NULL, "
    "request TEXT NOT NULL, result TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, chain BLOB NOT NULL) STRICT",
    "CREATE TABLE entries (epoch INTEGER PRIMARY KEY, key TEXT NOT NULL, payload BLOB NOT NULL, seal BLOB NOT NULL) STRICT",
    "CREATE INDEX entries_by_key ON entries (key, epoch)",
    "CREATE TABLE bundles (digest TEXT PRIMARY KEY, packed BLOB NOT NULL, packed_digest TEXT NOT NULL) STRICT",
)

WHAT_TO_DO: Final = (
    "stop and restore the whole folder `{folder}` from a backup, or, to begin anew without agents and revocations, remove it "
    "and feed.json of each host (hosts/NAME/feed.json) and registry.json of each worker (faust/SLOT/registry.json)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a change made, as it is answered again for the same id."""

    first: int
    last: int
    result: Mapping[str, Any]
    request: str
    """SHA-256 of the request, hex."""


@dataclass(slots=True)
class _Head:
    epoch: int
    chain: str
    counter: int


class Journal:
    """The open journal. One thread at a time calls it."""

    def __init__(self, folder: Path) -> None:
        """`folder` is `control` in the home; nobody else writes there while this lives."""
        self._folder = private_dir(folder)
        self.path = folder / "journal.sqlite"
        self.head_path = folder / "head.json"
        self._base: sqlite3.Connection | None = None
        self._no = 0
        self._epoch = 0
        self._chain = START
        self.counter = 0
        """The highest heartbeat counter that may be used without saying so first."""

    # -- opening -----------------------------------------------------------------------------------------------------

    def open(self, log: Log) -> None:
        """Read everything into `log`, and check it.

        Raises OperatorFault that names the file and says what to do when the journal is no database, is damaged, is shorter
        than its head, or is not what was written.
        """
        head = self._read_head()
        if head is not None and not self.path.exists():
            raise self._fault("is missing, but changes were made (head.json)")
        try:
            self._connect()
            if not self._make(new=head is None):
                self._check_form()
                self._read(log, head)
        except sqlite3.Error as fault:
            raise self._fault(f"cannot be read or is damaged ({str(fault).splitlines()[0]})") from fault
        except (ValueError, LookupError, TypeError, AssertionError, AttributeError, ArithmeticError, RecursionError) as fault:
            raise self._fault("is damaged (an entry cannot be read)") from fault
        if head is not None:
            self.counter = head.counter

    def _fault(self, what: str) -> OperatorFault:
        return OperatorFault(f"{self.path}: {what}; {WHAT_TO_DO.format(folder=self._folder)}")

    def _connect(self) -> None:
        # a path with `?` or `#` would be read as part of a URI; autocommit, since transactions are ours
        base = self._base = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=5)
        self.path.chmod(0o600)
        base.execute("PRAGMA cell_size_check = ON")
        mode = base.execute("PRAGMA journal_mode = DELETE").fetchone()
        if mode != ("delete",):
            raise sqlite3.DatabaseError(f"journal mode is {mode}")
        base.execute("PRAGMA synchronous = FULL")
        base.execute("PRAGMA trusted_schema = OFF")

    def _make(self, *, new: bool) -> bool:
        """Make the tables of a journal that has none; returns whether it did."""
        assert self._base is not None
        if self._base.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
            return False
        if not new:
            raise self._fault("is empty, but changes were made (head.json)")
        self._base.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            self._base.execute(statement)
        self._base.execute(f"PRAGMA application_id = {APPLICATION}")
        self._base.execute(f"PRAGMA user_version = {FORM}")
        self._base.execute("COMMIT")
        return True

    def _check_form(self) -> None:
        assert self._base is not None
        if self._base.execute("PRAGMA application_id").fetchone() != (APPLICATION,):
            raise self._fault("is not a journal of control")
        form = self._base.execute("PRAGMA user_version").fetchone()[0]
        if form != FORM:
            raise self._fault(f"has form {form}, this program reads {FORM}")
        said = {row[0] for row in self._base.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}
        if said != set(_SCHEMA):
            raise self._fault("is damaged (its tables are not ours)")
        found = self._base.execute("PRAGMA integrity_check(1)").fetchone()
        if found != ("ok",):
            raise self._fault(f"is damaged ({str(found[0]).splitlines()[0][:200]})")

    def _read(self, log: Log, head: _Head | None) -> None:
        assert self._base is not None
        entries = iter(self._base.cursor().execute("SELECT epoch, key, payload, seal FROM entries ORDER BY epoch"))
        met_head = head is None
        for no, name, actor, time_ns, request, result, first, last, chain in self._base.cursor().execute(
            "SELECT no, id, actor, time, request, result, first, last, chain FROM changes ORDER BY no"
        ):
            if no != self._no + 1 or last < first or (no > 1 and first != self._epoch + 1):
                raise self._fault(f"is not what was written (change {no} behind change {self._no}, epoch {self._epoch})")
            link = _Chain(self._chain, no, name, actor, time_ns, request, result, first, last)
            for wanted in range(first, last + 1):
                epoch, key, payload, seal = next(entries, (0, "", b"", b""))
                entry = entry_of(payload)
                if (epoch, key) != (wanted, entry.key) or entry.epoch != wanted or not _seal_fits(seal, payload):
                    raise self._fault(f"is not what was written (epoch {wanted})")
                link.add(payload)
                log.take(entry, payload)
            if link.digest() != chain:
                raise self._fault(f"is not what was written (the chain breaks at change {no}, epoch {first})")
            self._no, self._epoch, self._chain = no, last, chain
            met_head = met_head or (head is not None and (last, chain.hex()) == (head.epoch, head.chain))
        if next(entries, None) is not None:
            raise self._fault("is not what was written (an entry of no change)")
        if head is None and self._no > 1:
            raise OperatorFault(f"{self.head_path}: is missing; {WHAT_TO_DO.format(folder=self._folder)}")
        if not met_head and head is not None and head.epoch:
            raise self._fault(f"ends at epoch {self._epoch} and does not hold epoch {head.epoch}, which was made (head.json)")
        kept = {one.digest for one in log.policies}
        for digest, packed, packed_digest in self._base.cursor().execute("SELECT digest, packed, packed_digest FROM bundles"):
            if hashlib.sha256(packed).hexdigest() != packed_digest:
                raise self._fault(f"is damaged (bundle {digest[:12]})")
            kept.discard(digest)
        if kept:
            raise self._fault(f"is not what was written (bundle {min(kept)[:12]} is missing)")

    # -- reading -----------------------------------------------------------------------------------------------------

    @property
    def empty(self) -> bool:
        """Whether no change was ever made."""
        return self._no == 0

    def answer(self, request_id: str) -> Answer | None:
        """What the change of this id made; None when there is none."""
        assert self._base is not None
        row = self._base.execute("SELECT first, last, result, request FROM changes WHERE id = ?", (request_id,)).fetchone()
        return Answer(first=row[0], last=row[1], result=json.loads(row[2]), request=row[3]) if row else None

    def messages(self, epochs: Iterable[int]) -> Iterator[tuple[int, str, bytes]]:
        """(epoch, key, Kafka message) of these epochs, which are in order."""
        assert self._base is not None
        wanted = list(epochs)
        for at in range(0, len(wanted), ASK_MAX):
            part = wanted[at : at + ASK_MAX]
            marks = ",".join("?" * len(part))
            query = f"SELECT epoch, key, payload, seal FROM entries WHERE epoch IN ({marks}) ORDER BY epoch"
            for epoch, key, payload, seal in self._base.execute(query, part).fetchall():
                yield epoch, key, MAGIC + seal[:-CHECK_BYTES] + payload

    def last_epoch(self, key: str) -> int:
        """The epoch of the last entry of a key, be it its removal; 0 when there never was one."""
        assert self._base is not None
        return int(self._base.execute("SELECT coalesce(max(epoch), 0) FROM entries WHERE key = ?", (key,)).fetchone()[0])

    def after(self, epoch: int, limit: int, key: str = "") -> list[tuple[int, bytes]]:
        """(epoch, payload) of the entries behind an epoch, of one key where one is given, `limit` at most."""
        assert self._base is not None
        of_key = "AND key = ? " if key else ""
        query = f"SELECT epoch, payload FROM entries WHERE epoch > ? {of_key}ORDER BY epoch LIMIT ?"
        return list(self._base.execute(query, (epoch, key, limit) if key else (epoch, limit)))

    def bundle(self, digest: str) -> bytes | None:
        """The packed bytes of a bundle."""
        assert self._base is not None
        row = self._base.execute("SELECT packed FROM bundles WHERE digest = ?", (digest,)).fetchone()
        return bytes(row[0]) if row else None

    # -- writing -----------------------------------------------------------------------------------------------------

    def commit(
        self, change: Change, seals: Iterable[bytes], *, request_id: str, request: str, bundle: bytes | None = None,
        kept: Iterable[str] = (),
    ) -> None:
        """Have a change on the disk, all of it or nothing. `seals` are key id and signature of each entry.

        With a policy set comes its packed `bundle`; of older bundles only those in `kept` stay. Raises PeerFault when nothing
        was changed (no room), sqlite3.Error when that is not sure: then only a new start knows.
        """
        assert self._base is not None
        first, last = change.entries[0], change.entries[-1]
        result = json.dumps(change.result, separators=(",", ":"), sort_keys=True)
        row = (self._no + 1, request_id, first.actor, first.time_ns, request, result, first.epoch, last.epoch)
        link = _Chain(self._chain, *row)
        rows = []
        for entry, payload, seal in zip(change.entries, change.payloads, seals, strict=True):
            link.add(payload)
            rows.append((entry.epoch, entry.key, payload, seal + _check(seal, payload)))
        try:
            self._base.execute("BEGIN IMMEDIATE")
            self._base.executemany("INSERT INTO entries VALUES (?, ?, ?, ?)", rows)
            self._base.execute("INSERT INTO changes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, link.digest()))
            if bundle is not None:
                digest, packed_digest = str((first.value or {})["digest"]), hashlib.sha256(bundle).hexdigest()
                self._base.execute("INSERT OR REPLACE INTO bundles VALUES (?, ?, ?)", (digest, bundle, packed_digest))
                keep = [digest, *kept]
                self._base.execute(f"DELETE FROM bundles WHERE digest NOT IN ({','.join('?' * len(keep))})", keep)
            self._base.execute("COMMIT")
        except sqlite3.Error as fault:
            self._undo()
            raise PeerFault(f"{self.path}: cannot be written: {str(fault).splitlines()[0]}; nothing was changed") from fault
        # a crash from here on: the change is made, and the next start finds it behind the head and publishes it
        self._no, self._epoch, self._chain = row[0], last.epoch, link.digest()

    def _undo(self) -> None:
        """Be sure that the last transaction left nothing. Raises sqlite3.Error when that cannot be."""
        assert self._base is not None
        if self._base.in_transaction:
            self._base.execute("ROLLBACK")
        if self._base.execute("SELECT coalesce(max(no), 0) FROM changes").fetchone() != (self._no,):
            raise sqlite3.DatabaseError("a change is there that was not answered for")

    def say_head(self) -> None:
        """Have the end of the journal on the disk beside it: from now on a shorter journal is refused."""
        self.reserve(self.counter)

    def reserve(self, counter: int) -> None:
        """Heartbeat counters up to here may be used: after a crash the next start begins above them."""
        said: dict[str, Any] = {"epoch": self._epoch, "chain": self._chain.hex(), "counter": counter}
        write_atomic(self.head_path, json.dumps({**said, "check": _head_check(said)}).encode())
        self.counter = counter

    def seal_again(self, seals: Iterable[tuple[int, bytes, bytes]]) -> None:
        """Replace the signatures of entries: (epoch, payload, key id and signature). The chain is not over them."""
        assert self._base is not None
        rows = [(seal + _check(seal, payload), epoch) for epoch, payload, seal in seals]
        self._base.execute("BEGIN IMMEDIATE")
        self._base.executemany("UPDATE entries SET seal = ? WHERE epoch = ?", rows)
        self._base.execute("COMMIT")

    def payloads(self, epochs: Iterable[int]) -> list[tuple[int, bytes]]:
        """(epoch, payload) of these epochs."""
        return [(epoch, message[len(MAGIC) + KEY_ID_BYTES + SIGNATURE_BYTES :]) for epoch, _, message in self.messages(epochs)]

    def close(self) -> None:
        """Let go of the file."""
        if self._base is not None:
            self._base.close()
            self._base = None

    def _read_head(self) -> _Head | None:
        try:
            said = json.loads(self.head_path.read_bytes())
            check = said.pop("check")
            if check != _head_check(said):
                raise ValueError("check")
            return _Head(epoch=int(said["epoch"]), chain=str(said["chain"]), counter=int(said["counter"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
            raise OperatorFault(f"{self.head_path}: is damaged; {WHAT_TO_DO.format(folder=self._folder)}") from fault


class _Chain:
    """One link: over the link before it, a change's row, and its payloads."""

    def __init__(self, before: bytes, *row: object) -> None:
        self._hash = hashlib.sha256(before)
        self._hash.update(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode())

    def add(self, payload: bytes) -> None:
        self._hash.update(hashlib.sha256(payload).digest())

    def digest(self) -> bytes:
        return self._hash.digest()


def _check(seal: bytes, payload: bytes) -> bytes:
    return hashlib.sha256(seal + payload).digest()[:CHECK_BYTES]


def _seal_fits(seal: bytes, payload: bytes) -> bool:
    inner = seal[:-CHECK_BYTES]
    return len(inner) == KEY_ID_BYTES + SIGNATURE_BYTES and _check(inner, payload) == seal[-CHECK_BYTES:]


def _head_check(said: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(said), sort_keys=True).encode()).hexdigest()
