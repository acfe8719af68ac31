"""The worker's figures for Prometheus, and the same figures for its run file."""

from dataclasses import asdict, dataclass
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

RECORDS = Counter("wardline_worker_records", "Records stored")
FRAMES = Counter("wardline_worker_frames", "Frames stored")
DUPLICATES = Counter("wardline_worker_duplicates", "Frames that were stored already")
PUT_OFF = Counter("wardline_worker_put_off", "Frames too far beyond a missing one, left to their host to send again")
DEAD = Counter("wardline_worker_dead_letters", "Messages kept as dead letters", ["reason"])
STALE = Counter("wardline_worker_stale_events", "Events of an assignment that is over, left to whoever has the partition now")
INSERTS = Histogram(
    "wardline_worker_insert_seconds", "Seconds that one insert took", buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)
)
RETRIES = Counter("wardline_worker_store_retries", "Attempts to reach the store that failed and were repeated")
FRONTIERS = Counter("wardline_worker_frontiers", "Frontiers published")
RECREATED = Counter("wardline_worker_producers_recreated", "Frontier producers thrown away after an error")
CONTROL_REFUSED = Counter("wardline_worker_control_refused", "Control entries refused by a worker", ["reason"])
CONTROL_EPOCH = Gauge("wardline_worker_control_epoch", "Epoch of the control log that a worker has reached")
HOSTS = Gauge("wardline_worker_hosts", "Enforcers whose frames count")
ACKS = Counter("wardline_worker_acks", "Acknowledgements read, good ones and those refused by reason", ["verdict"])
RESPONSES = Counter("wardline_worker_responses", "What rules did about findings", ["state"])
FINDINGS = Counter("wardline_worker_findings", "Words on findings that were stored", ["detector"])
LOOKED = Counter("wardline_lookout_calls", "Calls that the detectors have taken, once for each subject", ["subject"])
KNOWN = Counter("wardline_lookout_known_frames", "Frames that were sent again and had been taken")
REFUSED = Counter("wardline_lookout_refused", "Messages of aggregates that were refused", ["reason"])
REBUILT = Counter("wardline_lookout_rebuilt_records", "Records that detectors were rebuilt from")
LOOKOUT_LAG = Gauge("wardline_lookout_lag_messages", "Messages of aggregates that have not been taken")
KEPT = Gauge("wardline_detector_entries", "What a detector keeps, in units of its limit", ["detector"])
EVICTED = Gauge("wardline_detector_evicted", "What had to make room in a detector", ["detector"])
DEFECTS = Counter("wardline_lookout_defects", "Errors that nobody foresaw in what looks at calls, not in the record", ["where"])
TRACES = Gauge("wardline_tap_traces", "Traces that are alive")
TRACES_EVICTED = Gauge("wardline_tap_traces_evicted", "Traces that had to make room")
OPEN = Gauge("wardline_tap_open_calls", "Calls whose end has not come")
OPEN_EVICTED = Gauge("wardline_tap_open_calls_evicted", "Calls that had to make room before their end came")
UNHEARD = Counter("wardline_tap_frames_again", "Frames stored before, whose aggregates were sent again")
LAG = Gauge("wardline_worker_lag_messages", "Messages of this worker's partitions that are not committed")
PARTITIONS = Gauge("wardline_worker_partitions", "Partitions of this worker")


@dataclass(slots=True)
class Figures:
    """What this worker has done since it started."""

    records: int = 0
    frames: int = 0
    duplicates: int = 0
    put_off: int = 0
    dead_letters: int = 0
    inserts: int = 0
    lag: int = 0

    def say(self) -> dict[str, Any]:
        """As the run file has them."""
        return asdict(self)
