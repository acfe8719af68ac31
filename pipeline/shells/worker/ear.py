"""What is in messages of `egress`: each is verified, frames that are known are left out, detectors take the rest."""

import heapq
import logging
import time
from collections.abc import Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.detect import Leaks
from pipeline.core.detect.interface import make_room
from pipeline.core.parcel import Parcel, parcel_worker, parse_parcel
from pipeline.shells.worker import metrics
from pipeline.shells.worker.parts import Part
from pipeline.shells.worker.ports import WorkerKeys
from pipeline.shells.worker.refusals import Refusals
from schemas.egress import SUBJECTS
from schemas.errors import FrameFault
from schemas.findings import Finding, parse_finding

log = logging.getLogger(__name__)

TOLD_S: Final = 10.0
TOLD_MAX: Final = 5
"""How often it is summed up who has told most, and of how many it is said."""


class Ear:
    """One for a worker, used by the thread of its detectors."""

    def __init__(self, keys: WorkerKeys) -> None:
        self._keys = keys
        self._refusals = Refusals(log, "a message of aggregates")
        self.calls = 0
        """Calls that the detectors of agents have taken since the start."""
        self.told: list[tuple[str, str, float]] = []
        """Who has told whom most by names and refused queries, in bits: a drip below every threshold shows here."""
        self._told_at = -TOLD_S

    def hear(
        self, part: Part, messages: Sequence[bytes], every: Sequence[Part]
    ) -> tuple[list[Finding], list[Finding]]:
        """What detectors of a partition say of its messages, and findings that other workers hand on in them.

        All partitions of the worker, which `every` is, have one memory.
        """
        parcels = [parcel for data in messages if (parcel := self._parcel(data)) is not None]
        tables: dict[str, list[pa.Table]] = {subject: [] for subject in SUBJECTS}
        handed: list[Finding] = []
        for parcel in parcels:
            fresh = parcel.without(part.seen.__contains__)
            metrics.KNOWN.inc(len(parcel.pieces) - len(fresh.pieces))
            for piece in fresh.pieces:
                part.seen.add(piece)
            for subject, table in fresh.rows.items():
                tables[subject].append(table)
            handed += [parse_finding(row) for row in parcel.findings.to_pylist()]
        rows = {subject: _whole(parts, subject) for subject, parts in tables.items()}
        self.calls += int(pc.sum(rows["agent"]["calls"]).as_py() or 0)
        words: list[Finding] = []
        for subject, table in rows.items():
            words += part.ask(subject, table)
        for subject, table in rows.items():
            metrics.LOOKED.labels(subject).inc(int(pc.sum(table["calls"]).as_py() or 0))
        make_room([one.detectors for one in every])
        if time.monotonic() - self._told_at >= TOLD_S:
            self.sum_up(every)
        return words, handed

    def sum_up(self, every: Sequence[Part]) -> None:
        """Look who has told most by now; also when detectors were made again, whether or not anything is heard since."""
        self._told_at = time.monotonic()
        leaks = [one for several in every for one in several.detectors if isinstance(one, Leaks)]
        told = (pair for one in leaks for pair in one.totals(TOLD_MAX))
        self.told = heapq.nlargest(TOLD_MAX, told, key=lambda pair: pair[2])

    def _parcel(self, data: bytes) -> Parcel | None:
        check = self._keys.worker_key(parcel_worker(data))
        try:
            if check is None:
                raise FrameFault("key", f"no key is registered for worker `{parcel_worker(data)}`")
            return parse_parcel(data, check)
        except FrameFault as fault:
            metrics.REFUSED.labels(fault.reason).inc()
            self._refusals.say(fault)
            return None


def _whole(parts: Sequence[pa.Table], subject: str) -> pa.Table:
    filled = [table for table in parts if table.num_rows]
    if not filled:
        return SUBJECTS[subject].empty_table()
    return pa.concat_tables(filled).unify_dictionaries().combine_chunks()
