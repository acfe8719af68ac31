"""The detectors of one partition of `egress`, and how they are made again from stored records."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.detect import Detector
from pipeline.core.detect.aggregate import Aggregator, split
from pipeline.core.detect.interface import make_room
from pipeline.core.detect.words import JUDGED_DAYS
from pipeline.core.seen import Numbers, Seen, of_frames
from pipeline.shells.worker import metrics
from schemas.egress import SUBJECTS, subject_partition
from schemas.findings import Finding
from schemas.frame import Lane

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Part:
    """One partition of ours."""

    detectors: list[Detector]
    seen: Seen = field(default_factory=Seen)
    ready: bool = False
    defects: int = 0

    def ask(self, subject: str, rows: pa.Table) -> list[Finding]:
        """Have the detectors of a subject take rows. One that fails is asked no more until the next start: the others go on."""
        words: list[Finding] = []
        for detector in [one for one in self.detectors if one.subject == subject and rows.num_rows]:
            try:
                words += detector.take(rows)
            except Exception:
                self.detectors.remove(detector)
                self.defects += 1
                metrics.DEFECTS.labels(detector.name).inc()
                log.exception("a defect: the detector `%s` takes nothing more until this worker starts again", detector.name)
        return words


@dataclass(slots=True)
class Rebuild:
    """Partitions whose detectors are made again, and how far that is."""

    parts: dict[int, Part]
    partitions: int
    since_s: int
    frames: Mapping[Lane, Numbers]
    began: float
    aggregator: Aggregator = field(default_factory=Aggregator)
    after: tuple[int, int, int] = (0, 0, 0)
    words: dict[str, Finding] = field(default_factory=dict)
    """What was said so far, the last word on each finding."""
    records: int = 0
    latest_us: int = 0
    """The latest call."""
    spilt: bool = False
    """Whether words were filed before the end."""

    def sum(self, page: pa.Table, every: Sequence[Part]) -> None:
        """Take the next records in, those of frames that were stored when this began; `every` are all partitions there are."""
        last = page.slice(page.num_rows - 1)
        self.after = (last["boot"][0].as_py(), last["call_seq"][0].as_py(), last["seq"][0].as_py())
        kept = of_frames(page, self.frames)
        rows = page if kept.all() else page.filter(pa.array(kept))
        self.records += rows.num_rows
        self.latest_us = max(self.latest_us, pc.max(page["time"].cast(pa.int64())).as_py())
        metrics.REBUILT.inc(rows.num_rows)
        if not rows.num_rows:
            return
        sums = self.aggregator.rebuild(rows)
        for subject in SUBJECTS:
            for partition, table in split(sums.of(subject), subject, self.partitions):
                if (part := self.parts.get(partition)) is not None:
                    self.words |= {word.id: word for word in part.ask(subject, table)}
        make_room([one.detectors for one in every])

    def owns(self, text: str) -> bool:
        """Whether a subject is of one of these partitions."""
        return subject_partition(text, self.partitions) in self.parts

    def said(self, finding: Finding) -> bool:
        """Whether a finding is a word of one of these detectors."""
        subjects = {one.name: one.subject for part in self.parts.values() for one in part.detectors}
        subject = getattr(finding, subjects.get(finding.detector, ""), "")
        return bool(subject) and self.owns(subject)

    def words_of(self, lately: Sequence[Finding]) -> tuple[list[Finding], list[Finding]]:
        """What the rebuild says: words of detectors that know everything, and of those that had to let something go.

        What was stored lately and does not hold by all that is known now is taken back: whoever said it died before he heard of
        the call that says otherwise.
        """
        lossy = {one.name for part in self.parts.values() for one in part.detectors if one.evicted}
        judged_us = self.latest_us - JUDGED_DAYS * 86_400_000_000
        words = list(self.words.values())
        for one in () if self.spilt else lately:
            fits = one.detector not in lossy and one.time_us >= judged_us and one.id not in self.words
            if fits and not one.withdrawn and self.said(one):
                words.append(replace(one, withdrawn=True))
        return [one for one in words if one.detector not in lossy], [one for one in words if one.detector in lossy]
