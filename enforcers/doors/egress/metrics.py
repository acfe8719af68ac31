"""The figures of one door: plain numbers that the hot path adds to, made into Prometheus's form when somebody asks.

Every limit of `[egress]` has a figure of its own that says how often it was reached, under its name.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

LIMITS: Final = (
    "header_bytes", "header_ms", "body_ms", "answer_ms", "idle_ms", "connections", "connections_per_agent", "tunnels_per_agent",
    "tunnel_idle_ms", "upstreams", "upstreams_per_agent_host", "dns_ms", "dial_ms", "stale_tunnel_ms", "stop_ms", "spool",
)  # fmt: skip


class Figures(Collector):
    """What one door has done since it began."""

    def __init__(self) -> None:
        self.allowed = 0
        self.refused: Counter[str] = Counter()
        """Calls by the reason of the decision, or of the effect that took it back."""
        self.failed: Counter[str] = Counter()
        """Calls that were out and failed, by how."""
        self.unnamed: Counter[str] = Counter()
        """Requests that were no call, by status: 400, 407 and their kin."""
        self.reached = Counter(dict.fromkeys(LIMITS, 0))
        """Limits, by name."""
        self.retried = 0
        """Calls that were sent again, since the kept connection that they went out on was closed at its other end."""
        self.gauges: dict[str, Callable[[], float]] = {}

    def serve(self) -> None:
        """Be asked with the others of this process."""
        REGISTRY.register(self)

    def collect(self) -> Iterator[Metric]:
        """What Prometheus asks."""
        calls = CounterMetricFamily("wardline_door_calls", "Calls that were let out", value=self.allowed)
        yield calls
        for name, said, label, counts in (
            ("refused", "Calls that were refused, or stopped, by reason", "reason", self.refused),
            ("failed", "Calls that were out and failed", "how", self.failed),
            ("unnamed", "Requests that were no call, by status", "status", self.unnamed),
            ("limits", "How often a limit of [egress] was reached, or the spool had no room", "limit", self.reached),
        ):
            family = CounterMetricFamily(f"wardline_door_{name}", said, labels=[label])
            for key, value in sorted(dict(counts).items()):  # a copy: this is another thread
                family.add_metric([key], value)
            yield family
        yield CounterMetricFamily("wardline_door_retried", "Calls sent again on a new connection", value=self.retried)
        for name, read in self.gauges.items():
            yield GaugeMetricFamily(f"wardline_door_{name}", "Now", value=read())
