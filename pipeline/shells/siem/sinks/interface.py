"""What a sink is to its line."""

from typing import Protocol

from pipeline.core.ocsf import Alert
from pipeline.core.siem.feeder import Batch


class Sink(Protocol):
    """Where events of one table go. One batch at a time, in their order."""

    where: str
    """What it is, for people: a path, an address, a topic. No secret."""

    def pack(self, alert: Alert) -> bytes:
        """An event as JSON, as large as this sink may take it. The same bytes for the same event."""

    async def take(self, batch: Batch) -> str:
        """Hand a batch over; returns what the other side said of it, once all of it is there.

        Raises PeerFault where the same may work later, OperatorFault where somebody must put something right first. Either way
        the batch may be there all the same, and is handed over again.
        """

    async def close(self) -> None:
        """Let go of what is open. What was taken stays taken."""
