"""A host that obeys, made of plain code: the real follower, a board that remembers, a disk, and a clock that a test moves."""

from collections.abc import Iterable
from typing import Any

from enforcers.core.obey import Floors, Obey, parse_floors
from schemas.errors import PeerFault
from schemas.follower import Follower
from tests.support.entries import CONTROL, Journal

HOST, KEY = "enforce-1", "11" * 32
OTHER_KEY = "22" * 32
STALE_NS = 5_000
BOOT = "00000001000000bb"


class Board:
    """Remembers what it was told, and what its readers would find."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.revoked: dict[str, int] = {}
        self.epoch = 0
        self.paused = False
        self.policy = b""
        self.until_ns = 0
        self.room = True

    def _need_room(self) -> None:
        if not self.room:
            self.until_ns = 0
            raise PeerFault("board.table2: cannot be made: no space left on device")

    def change(
        self, revoke: Iterable[tuple[str, int]], lift: Iterable[str], *, epoch: int, paused: bool, policy: bytes
    ) -> None:
        self._need_room()
        self.steps.append("change")
        self.revoked.update(revoke)
        for text in lift:
            self.revoked.pop(text, None)
        self.epoch, self.paused, self.policy = epoch, paused, policy

    def replace(self, revoked: Iterable[tuple[str, int]], *, epoch: int, paused: bool, policy: bytes) -> None:
        self._need_room()
        self.steps.append("replace")
        self.revoked = dict(revoked)
        self.epoch, self.paused, self.policy = epoch, paused, policy

    def fresh(self, until_ns: int) -> None:
        self.steps.append("fresh")
        self.until_ns = until_ns


class Host:
    """One host with its follower, board and disk, and a clock that the test moves."""

    def __init__(self, journal: Journal, *, floors: Floors | None = None, pin: dict[bytes, bytes] | None = None) -> None:
        self.journal = journal
        kept = floors or Floors()
        pinned = {bytes.fromhex(key_id): bytes.fromhex(public) for key_id, public in kept.keys.items()} or pin or CONTROL.pin
        self.board = Board()
        self.disk = kept
        self.now = 1_000_000
        follower = Follower(pinned, epoch=kept.epoch, counter=kept.counter)
        self.agents = b""
        """The file that doors know the agents by."""
        self.agents_room = True
        self.agents_at: list[int] = []
        """The board's epoch whenever the file was written."""
        self.obey = Obey(
            follower, self.board, host=HOST, key=KEY, stale_ns=STALE_NS, floors=floors, write_agents=self._write_agents
        )  # fmt: skip

    def _write_agents(self, data: bytes) -> None:
        if not self.agents_room:
            raise PeerFault("agents.json: cannot be written: no space left on device")
        self.agents_at.append(self.board.epoch)
        self.agents = data

    def hear(self, *messages: bytes, at_end: bool = True, written: int | None = None, keep: bool = True) -> "Host":
        """Messages one after another, the last at the end of the log; what must be kept is kept at once."""
        for number, data in enumerate(messages, 1):
            self.obey.message(
                data, at_end=at_end and number == len(messages), written_ns=self.now if written is None else written,
                wall_ns=self.now + 7,
            )  # fmt: skip
            if keep:
                self.keep()
        self.obey.tick(self.now)
        return self

    def keep(self) -> None:
        floors = self.obey.floors()
        if floors is not None:
            self.disk = floors
            self.obey.kept(floors)

    def later(self, ns: int) -> "Host":
        self.now += ns
        self.obey.tick(self.now)
        return self

    def ack(self, *doors: tuple[str, int, bytes, int]) -> Any:
        return self.obey.ack(boot=BOOT, doors=doors, lag_records=3, said_ns=9)


def registered() -> Journal:
    journal = Journal()
    journal.put(f"enforcer/{HOST}", {"key": KEY})
    return journal


def ready(journal: Journal | None = None) -> Host:
    """A host that has joined and is fresh."""
    journal = journal or registered()
    host = Host(journal).hear(*journal.whole(), journal.beat())
    assert host.obey.state == "ready"
    return host


def restarted(host: Host) -> Host:
    """What the disk has, read again."""
    return Host(host.journal, floors=parse_floors(host.disk.encode(), "feed.json"))
