"""The figures of the process `siem` for Prometheus; each has the name of its sink."""

from prometheus_client import Counter, Gauge

EVENTS = Counter("wardline_siem_events", "Events that a sink has taken", ["sink"])
BATCHES = Counter("wardline_siem_batches", "Batches that a sink has taken", ["sink"])
BYTES = Counter("wardline_siem_bytes", "Bytes of events that a sink has taken, as JSON", ["sink"])
RETRIES = Counter("wardline_siem_retries", "Looks, batches and cursors that failed and are tried again", ["sink"])
LAG = Gauge("wardline_siem_lag_seconds", "How long the next event of a sink has been in the store", ["sink"])
WAITING = Gauge("wardline_siem_waiting_events", "Events that were read and that a sink has not taken", ["sink"])
STUCK = Gauge("wardline_siem_stuck", "1 while a sink is tried in vain", ["sink"])
CUT = Gauge("wardline_siem_window_cut", "Keys dropped from a full window: rows visible so late are missed", ["sink"])
