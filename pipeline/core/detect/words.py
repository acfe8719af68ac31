"""What a detector has said of a subject, and what it has to say now."""

from collections.abc import Mapping
from dataclasses import replace

from schemas.findings import Finding


def news(said: Mapping[int, Finding], holds: Mapping[int, Finding], version: int) -> list[Finding]:
    """What differs between what was said and what holds, by window: new words, other words, and words taken back.

    `version` is of the state that `holds` was judged from, and so of what is withdrawn.
    """
    changed = [one for window, one in holds.items() if window not in said or differs(said[window], one)]
    return changed + [replace(one, version=version, withdrawn=True) for window, one in said.items() if window not in holds]


def differs(said: Finding, now: Finding) -> bool:
    """Whether two words on one thing say something else; that more calls are known is no difference."""
    return replace(said, version=now.version) != now
