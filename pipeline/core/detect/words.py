"""What a detector has said of a subject, and what it has to say now."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from schemas.findings import Finding

PAST_DAYS: Final = 7
"""How far back an agent's own past is taken."""

JUDGED_DAYS: Final = 8
"""What is said is of so many days up to an agent's latest call. A worker that starts reads fifteen days (`[detect]
lookback_days`), and so knows the whole past of each of these. What is older was judged when its past was known; a call that
comes later than that changes nothing any more."""

KEPT_DAYS: Final = PAST_DAYS + JUDGED_DAYS


def examples(texts: Sequence[str | Sequence[str]], most: int, bytes_max: int = 6 << 10) -> list[str | list[str]]:
    """The first `most` of some texts, or of lists of them, or fewer: as many as are `bytes_max` bytes of JSON at most."""
    shown: list[str | list[str]] = []
    for text in texts[:most]:
        bytes_max -= len(json.dumps(text, ensure_ascii=False).encode()) + 1
        if bytes_max < 0:
            break
        shown.append(text if isinstance(text, str) else list(text))
    return shown


def news(said: Mapping[int, Finding], holds: Mapping[int, Finding], version: int) -> list[Finding]:
    """What differs between what was said and what holds, by window: new words, other words, and words taken back.

    `version` is of the state that `holds` was judged from, and so of what is withdrawn.
    """
    changed = [one for window, one in holds.items() if window not in said or differs(said[window], one)]
    return changed + [replace(one, version=version, withdrawn=True) for window, one in said.items() if window not in holds]


def differs(said: Finding, now: Finding) -> bool:
    """Whether two words on one thing say something else; that more calls are known is no difference."""
    return replace(said, version=now.version) != now
