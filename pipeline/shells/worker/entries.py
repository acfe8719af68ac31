"""One event of the pump, and what has to happen before it may be acknowledged."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.core.intake import Accepted, Dead, Duplicate, Judged, read_again
from pipeline.core.ledger import Ledger
from pipeline.core.rows import FrameRow, letter_row
from pipeline.shells.worker import metrics
from pipeline.shells.worker.ports import Voice
from schemas.errors import FrameFault
from schemas.store import FLAG_DEAD

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An event that waits in a batch."""

    event: Any
    row: FrameRow | None = None
    letter: Mapping[str, Any] | None = None
    reason: str = ""
    again: FrameRow | None = None
    """A frame that whoever had the partition before has stored: what is in it is said again."""

    @property
    def rows(self) -> int:
        """Rows that the store will write for it."""
        return self.row.rows if self.row is not None else 0

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        held = self.row or self.again
        return held.batch.nbytes if held is not None and held.batch is not None else len(self.event.message.value or b"")


class Entries:
    """Makes entries of what intake has said, and counts."""

    def __init__(self, ledger: Ledger, voice: Voice, figures: metrics.Figures, *, tells: bool) -> None:
        """`tells`: whether there is a tap."""
        self._ledger = ledger
        self._voice = voice
        self._figures = figures
        self._tells = tells

    def make(self, event: Any, judged: Judged) -> Entry:
        """What becomes of an event."""
        offset = event.message.offset
        if isinstance(judged, Accepted):
            row = FrameRow(
                head=judged.head, digest=judged.digest, signed=judged.signed, wire_bytes=judged.wire_bytes, offset=offset,
                flag=judged.flag, batch=judged.batch,
            )  # fmt: skip
            return Entry(event=event, row=row)
        if isinstance(judged, Dead):
            return self._dead(event, judged)
        if isinstance(judged, Duplicate):
            metrics.DUPLICATES.inc()
            self._figures.duplicates += 1
            if frontier := self._ledger.frontier(judged.lane):
                self._voice.say(judged.lane, frontier)  # its host would not send it again if it knew
            return Entry(event=event, again=self._again(event.message, judged))
        metrics.PUT_OFF.inc()
        self._figures.put_off += 1
        return Entry(event=event)

    def _again(self, message: Any, known: Duplicate) -> FrameRow | None:
        """A frame that was stored before the partition was ours, the first time that it is read again."""
        if not self._tells or not self._ledger.tell_again(known.lane, known.frame_no):
            return None
        try:
            head, batch = read_again(message.value)
        except FrameFault as fault:  # another frame of that number, in which there is nothing that was stored
            log.warning("offset %d of lane %s: a copy of a stored frame is none: %s", message.offset, known.lane.text, fault)
            return None
        return FrameRow(head=head, digest=bytes(32), signed=b"", wire_bytes=0, offset=message.offset, flag="", batch=batch)

    def _dead(self, event: Any, dead: Dead) -> Entry:
        message = event.message
        partition, offset = message.tp.partition, message.offset
        log.warning("partition %d offset %d is a dead letter: %s: %s", partition, offset, dead.reason, dead.message)
        letter = letter_row(dead, message.value or b"", partition, offset, received_us=time.time_ns() // 1000)
        row = None
        if dead.passes and dead.head is not None:
            row = FrameRow(head=dead.head, digest=dead.digest, signed=dead.signed, wire_bytes=dead.wire_bytes, offset=offset,
                           flag=FLAG_DEAD, batch=None)  # fmt: skip
        return Entry(event=event, row=row, letter=letter, reason=dead.reason)
