"""What is noticed in the calls: aggregates in, findings out, pure and the same in any order of frames.

`aggregate` sums up each frame by agent, credential and domain; `dedupe` drops what was taken before; `interface` is what a
detector is; `coded` and `columns` are rows as numbers, `words` what it has said and has to say.

By agent: `denials` notices bursts of refusals, `volume` bytes far above an agent's own past, `sequence` tools in an order that
is new, `beacon` calls as regular as those of a program that waits for orders, `leak` what names and queries can have carried
out. By domain: `firstseen` notices one that is new. By credential: `holder` notices a second one who has it. `fuse` makes one
risk of what the detectors say of an agent.
"""

from pipeline.core.detect.beacon import Beacons
from pipeline.core.detect.denials import DenyBursts
from pipeline.core.detect.firstseen import FirstSeen
from pipeline.core.detect.holder import SecondHolders
from pipeline.core.detect.interface import Detector
from pipeline.core.detect.leak import Leaks
from pipeline.core.detect.sequence import Sequences
from pipeline.core.detect.volume import Volumes

__all__ = ["Detector", "Leaks", "detectors"]


def detectors() -> list[Detector]:
    """Those that Wardline ships, with their defaults, knowing nothing yet: one of each for a partition of `egress`."""
    return [DenyBursts(), Volumes(), Sequences(), Beacons(), Leaks(), FirstSeen(), SecondHolders()]
