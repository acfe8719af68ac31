"""The bytes of each kind of sink: lines of JSON, the body of a request to Splunk, frames of syslog.

Syslog: RFC 5424 messages in the frames of RFC 5425 (`LENGTH SP MESSAGE`, what RFC 6587 calls octet counting), below 8 KiB: what
every receiver must take is 2 KiB and what it should is 8 (RFC 5425, section 4.3.1). MSG is the event as JSON, all ASCII, so
there is no byte order mark; an event that is too large is made smaller and says so.
"""

import gzip
import json
import re
from collections.abc import Sequence
from typing import Any, Final

from pipeline.core.ocsf import Alert, fitted

SYSLOG_BYTES_MAX: Final = 8192
"""Bytes of one frame, its length included."""

EVENT_IN_SYSLOG_MAX: Final = SYSLOG_BYTES_MAX - 700
"""Bytes of the event in it: what stands before has names of 255, 48 and 128 characters at most."""

FACILITY_AUDIT: Final = 13
"""RFC 5424, table 1: log audit."""

_SYSLOG_SEVERITY: Final = {1: 6, 2: 5, 3: 4, 4: 3, 5: 2}
"""OCSF's severity_id -> syslog's: informational, notice, warning, error, critical."""

_NOT_NAME: Final = re.compile(r"[^\x21-\x7e]")


def json_lines(events: Sequence[bytes]) -> bytes:
    """One event a line."""
    return b"".join(event + b"\n" for event in events)


def hec_body(alerts: Sequence[Alert], events: Sequence[bytes], *, host: str, index: str) -> bytes:
    """The body of `POST /services/collector/event`, packed: objects one after the other, which is no array.

    `time` is the event's own, in seconds; `fields` are indexed, so that duplicates are found without reading events.
    """
    parts = []
    for alert, event in zip(alerts, events, strict=True):
        head: dict[str, Any] = {
            "time": f"{alert.time_us / 10**6:.3f}", "host": host, "source": "wardline", "sourcetype": "wardline:ocsf",
            "fields": {"uid": alert.uid},
        }  # fmt: skip
        if index:
            head["index"] = index
        text = json.dumps(head, separators=(",", ":"))
        parts.append(text.encode()[:-1] + b',"event":' + event + b"}")
    return gzip.compress(b"\n".join(parts), 5, mtime=0)


def syslog_event(alert: Alert) -> bytes:
    """An event as it stands in a syslog message."""
    return fitted(alert, EVENT_IN_SYSLOG_MAX)


def syslog_frames(alerts: Sequence[Alert], events: Sequence[bytes], *, host: str, pid: int, stamps: Sequence[str]) -> bytes:
    """Messages in their frames. `stamps` are the events' times as RFC 3339 has them."""
    parts = []
    for alert, event, stamp in zip(alerts, events, stamps, strict=True):
        priority = FACILITY_AUDIT * 8 + _SYSLOG_SEVERITY.get(alert.body["severity_id"], 6)
        kind = f"OCSF{alert.body['class_uid']}"
        message = f"<{priority}>1 {stamp} {_name(host, 255)} wardline {pid} {kind} - ".encode() + event
        parts.append(b"%d %b" % (len(message), message))
    return b"".join(parts)


def _name(text: str, limit: int) -> str:
    return _NOT_NAME.sub("?", text)[:limit] or "-"
