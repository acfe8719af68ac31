"""What workers tell each other of the calls in a batch: partial aggregates, by the subject that a detector keeps its state for.

A trace lies in one partition of `calls`, an agent, a credential or a domain in all of them. So whoever stores a frame sums up
its calls by subject, and sends each sum to the partition of `egress` that the subject's hash names. Every row names the frame
that it comes from: a frame that is read again sends the same rows again, and whoever has taken that frame skips them.

Rows of one frame with equal keys are one row. Times are the calls' own (`time`), cut to `second` or `hour`; `call` is the id
(boot, seq) of the first call that a row stands for.
"""

import ipaddress
import zlib
from functools import lru_cache
from typing import Final

import pyarrow as pa

_TEXT: Final = pa.dictionary(pa.int32(), pa.utf8())
_SECOND: Final = pa.timestamp("s", tz="UTC")

_FRAME: Final = (
    pa.field("lane_host", _TEXT, nullable=False),
    pa.field("lane_boot", pa.uint64(), nullable=False),
    pa.field("lane_partition", pa.uint32(), nullable=False),
    pa.field("frame_no", pa.uint64(), nullable=False),
)
"""Which frame the row comes from."""

_CALL: Final = (
    pa.field("call_boot", pa.uint64(), nullable=False),
    pa.field("call_seq", pa.uint64(), nullable=False),
)

AGENT_ROWS: Final = pa.schema(
    [
        *_FRAME,
        pa.field("agent", _TEXT, nullable=False),
        pa.field("host", _TEXT, nullable=False),
        pa.field("domain", _TEXT, nullable=False),
        pa.field("action", _TEXT, nullable=False),
        pa.field("resource", _TEXT, nullable=False),
        pa.field("task", _TEXT, nullable=False),
        pa.field("second", _SECOND, nullable=False),
        pa.field("query_hash", pa.uint64(), nullable=False),
        pa.field("query_bits", pa.uint32(), nullable=False),
        pa.field("calls", pa.uint32(), nullable=False),
        pa.field("denied", pa.uint32(), nullable=False),
        pa.field("bytes_out", pa.uint64(), nullable=False),
        pa.field("bytes_in", pa.uint64(), nullable=False),
        pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
        *_CALL,
    ],
    metadata={"subject": "agent"},
)
"""By agent, where and what, second and query. `task` is the session, or where there is none the trace id (32 hex digits): what
a sequence of tools is looked for in. `time` is the first call's. Of a call whose end (effect, loss, progress) is all that this
frame has, `calls` and `denied` are 0 (`denied` 1 where the end takes the verdict back) and the bytes are what came on top."""

CREDENTIAL_ROWS: Final = pa.schema(
    [
        *_FRAME,
        pa.field("credential", _TEXT, nullable=False),
        pa.field("proof", _TEXT, nullable=False),
        pa.field("agent", _TEXT, nullable=False),
        pa.field("enforcer", _TEXT, nullable=False),
        pa.field("network", _TEXT, nullable=False),
        pa.field("calls", pa.uint32(), nullable=False),
        pa.field("first", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("last", pa.timestamp("us", tz="UTC"), nullable=False),
        *_CALL,
    ],
    metadata={"subject": "credential"},
)
"""By credential and holder: the enforcer's host, and the network that the caller's connection came from (`network_of`)."""

DOMAIN_ROWS: Final = pa.schema(
    [
        *_FRAME,
        pa.field("domain", _TEXT, nullable=False),
        pa.field("agent", _TEXT, nullable=False),
        pa.field("hour", _SECOND, nullable=False),
        pa.field("calls", pa.uint32(), nullable=False),
        pa.field("writes", pa.uint32(), nullable=False),
        pa.field("denied", pa.uint32(), nullable=False),
        pa.field("bytes_out", pa.uint64(), nullable=False),
        pa.field("first", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("last", pa.timestamp("us", tz="UTC"), nullable=False),
        *_CALL,
    ],
    metadata={"subject": "domain"},
)
"""By registrable domain (of a host that has none, the host itself; of a tool, its MCP server) and agent, each hour. `writes`
are calls that may carry something out: POST, PUT, PATCH, DELETE, a tunnel, or with a query.

A row without a domain says only since when its agent is known (`first`), and goes to every partition: what is new for an agent
that has just begun is not new at all, and no other row says so in every partition."""

SUBJECTS: Final = {"agent": AGENT_ROWS, "credential": CREDENTIAL_ROWS, "domain": DOMAIN_ROWS}


@lru_cache(8192)
def network_of(client: str) -> str:
    """The network that a caller's connection came from: an address's /24 (IPv6: /48), else as it is (`unix`, empty)."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return client
    return str(ipaddress.ip_network((address, 24 if address.version == 4 else 48), strict=False))


def subject_partition(subject: str, partitions: int) -> int:
    """The partition of `egress` that has the state of a subject: its CRC-32 (ClickHouse has the same function)."""
    return zlib.crc32(subject.encode()) % partitions
