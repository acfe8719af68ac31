"""What is exchanged inside the shipped code while a history runs: its clock, the pen of whoever buries a door, and a spy."""

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from enforcers.host import doors, engine
from ext.spool import SpoolWriter
from pipeline.core import ledger as ledgers
from pipeline.core.intake import Accepted, Dead, Duplicate, Judged, PutOff, judge
from pipeline.core.ledger import Ledger
from pipeline.shells.worker import entries, notes, pump
from tests.sim.disk import Disk
from tests.sim.doors import Pen
from tests.sim.rules import Truth
from tests.sim.story import Story

LANE_AHEAD_MAX = 6
"""The shipped limit is 4,096 frames; here it comes up."""


def enter(stack: ExitStack, story: Story, disk: Disk, truth: Truth, reads_less: Callable[[], bool]) -> None:
    """Put the story's clock and the pen in, and have the story told what intake says of each message.

    `reads_less()` says whether the worker that judges now is one that cannot read what it has been given.
    """

    def pen(folder: str, boot: int, *sizes: int) -> Pen:
        return Pen(disk, truth, boot, SpoolWriter(folder, boot, *sizes))

    def spy(data: bytes | None, partition: int, key_of: Any, ledger: Ledger) -> Judged:
        judged = judge(data, partition, key_of, ledger)
        if isinstance(judged, Accepted) and reads_less():
            judged = _unreadable(judged, data or b"", ledger, truth)
        match judged:
            case Accepted(head=head):
                story.tell(f"partition {partition}: {head.lane.text} frame {head.frame_no} is accepted {judged.flag}".rstrip())
            case Dead(reason=reason):
                story.fault(f"dead letter: {reason}")
            case Duplicate():
                story.fault("duplicate", f"{judged.lane.text} frame {judged.frame_no}")
            case PutOff():
                story.fault("put off", f"{judged.lane.text} frame {judged.frame_no}")
                truth.put_off.add((judged.lane, judged.frame_no))
        return judged

    for module in (engine, doors, entries, notes, pump):
        stack.enter_context(patch.object(module, "time", story.clock))
    stack.enter_context(patch.object(doors, "SpoolWriter", pen))
    stack.enter_context(patch.object(pump, "judge", spy))
    stack.enter_context(patch.object(ledgers, "LANE_AHEAD_MAX", LANE_AHEAD_MAX))


def _unreadable(judged: Accepted, data: bytes, ledger: Ledger, truth: Truth) -> Dead:
    """What an older worker says of a frame in a form that it does not know yet."""
    head = judged.head
    boots, seqs = (judged.batch.column(name).to_pylist() for name in ("boot", "seq"))
    truth.letters[hashlib.sha256(data).digest()] = list(zip(boots, seqs, strict=True))
    return Dead(
        reason="schema", message="the payload's schema is not version 1", head=head, digest=judged.digest, signed=judged.signed,
        passes=not ledger.is_dead(head.lane, head.frame_no), wire_bytes=judged.wire_bytes,
    )  # fmt: skip
