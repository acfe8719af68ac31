"""What the pump needs of the others, so that a test or a simulation can stand in for each."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from pipeline.core.detect.aggregate import Aggregates
from pipeline.core.intake import Check
from pipeline.core.rows import FrameRow
from pipeline.core.seen import Numbers
from pipeline.core.stitch.stitcher import Stitched
from pipeline.shells.worker.sink import Taken
from schemas.findings import Finding
from schemas.frame import Lane


@dataclass(slots=True)
class Reading:
    """What is in one batch, to be said once it is stored."""

    sums: list[tuple[list[tuple[Lane, int]], Aggregates]] = field(default_factory=list)
    stitched: list[Stitched] = field(default_factory=list)


class Store(Protocol):
    """What the pump needs of `sink`."""

    def take_over(self, partition: int) -> Taken:
        """Own a partition."""

    def insert(self, stream: memoryview, token: str, owned: Mapping[int, int]) -> None:
        """Store a batch."""

    def keep(self, letters: Sequence[Mapping[str, Any]]) -> None:
        """Store dead letters."""

    def note(self, frontiers: Sequence[Mapping[str, Any]]) -> None:
        """Store how far lanes are."""


class Voice(Protocol):
    """What the pump needs of `herald`."""

    def say(self, lane: Lane, frame_no: int) -> None:
        """A frontier."""

    def wake(self, digest: str) -> None:
        """A dead letter is stored."""


class Looks(Protocol):
    """What the pump needs of `tap`."""

    @property
    def waits_for(self) -> str:
        """Why something is tried again; empty when nothing is."""

    @property
    def progress_at(self) -> float:
        """When something was last finished there, or somebody else was seen to be what stands still (monotonic seconds)."""

    def begin(self, partition: int) -> None:
        """A partition is ours from now on, in which something is stored."""

    def close(self) -> None:
        """Give up what is tried in vain."""

    async def clear(self) -> None:
        """Forget everything: the partitions are perhaps another's from now on."""

    async def read(self, table: pa.Table | None, frames: Sequence[FrameRow], again: Sequence[FrameRow]) -> Reading:
        """Look at a batch that is being stored."""

    async def tell(self, reading: Reading) -> None:
        """Say what is in a batch that is stored."""

    async def finish(self) -> None:
        """Write what is left to write."""


class Carries(Protocol):
    """What tap and lookout need of `carrier`."""

    @property
    def waits_for(self) -> str:
        """Why something is not sent."""

    async def carry(self, messages: Sequence[tuple[int, bytes]], closing: asyncio.Event) -> None:
        """Send (partition, message)."""


class Keys(Protocol):
    """What the pump needs of `registry`."""

    @property
    def why(self) -> str:
        """Why no frame can be judged yet; empty when one can."""

    async def ready(self) -> None:
        """Returns once frames can be judged."""

    def key_of(self, host: str) -> Check | None:
        """The key by which frames of a host count."""

    def former_of(self, host: str) -> Check | None:
        """The key of a host that was removed."""

    async def caught_up(self) -> bool:
        """Wait until everything that control has said by now is known here; False when that cannot be had in time."""


class LookoutStore(Protocol):
    """What the lookout needs of `past`, beside what `cases` needs."""

    def frames(self, since_s: int) -> dict[Lane, Numbers]:
        """The frames of every lane."""

    def page(self, since_s: int, after: tuple[int, int, int]) -> pa.Table:
        """The next records of calls."""

    def lately(self, since_s: int, most: int) -> list[Finding]:
        """The newest findings."""


class WorkerKeys(Protocol):
    """What the lookout needs of `registry`."""

    async def ready(self) -> None:
        """Returns once control was heard."""

    def worker_key(self, worker: str) -> Check | None:
        """The key by which a worker's aggregates count."""

    async def caught_up(self) -> bool:
        """Wait until everything that control has said by now is known here; False when that cannot be had in time."""


class AckStore(Protocol):
    """What `acks` needs of `sink`."""

    def keep_acks(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Store what hosts have said of themselves."""

    def ack_state(self, journal: int, host: str, host_boot: str) -> list[tuple[Any, ...]]:
        """The last word of a host's start and of its doors: door, epoch, policies, applied, state, doors, said (us)."""
