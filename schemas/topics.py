"""Kafka topics: names and what they are for. A prefix from the configuration stands before each name."""

from dataclasses import dataclass
from typing import Final

DEFAULT_PREFIX: Final = "wardline."


@dataclass(frozen=True, slots=True)
class Topics:
    """The names of the topics under one prefix."""

    prefix: str = DEFAULT_PREFIX

    @property
    def calls(self) -> str:
        """Frames; n partitions; kept by time."""
        return self.prefix + "calls"

    @property
    def stored(self) -> str:
        """Signed frontiers, key = lane; only partition 0 is used; compacted."""
        return self.prefix + "stored"

    @property
    def deadletter(self) -> str:
        """Wakes whoever watches dead letters: the rows are in the store; only partition 0 is used."""
        return self.prefix + "deadletter"

    @property
    def control(self) -> str:
        """Signed entries in one order, key = entry key; one partition; compacted."""
        return self.prefix + "control"

    @property
    def bundles(self) -> str:
        """Chunks of packed policy bundles, key = digest and number; one partition."""
        return self.prefix + "bundles"

    @property
    def acks(self) -> str:
        """What each host and door has applied, signed, key = host; one partition."""
        return self.prefix + "acks"

    @property
    def egress(self) -> str:
        """Partial aggregates of calls by detectors' subjects (`schemas.egress`); n partitions; kept by time."""
        return self.prefix + "egress"

    @property
    def findings(self) -> str:
        """Wakes whoever follows findings: the rows are in the store; key = agent; only partition 0 is used."""
        return self.prefix + "findings"

    @property
    def alerts(self) -> str:
        """OCSF events as JSON, key = agent; n partitions; kept by time."""
        return self.prefix + "alerts"
