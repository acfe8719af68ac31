"""Every limit has a name, a default and a verdict on reaching it. These are the ones that are part of a contract.

Limits that an operator may set live in the configuration (`docs/configuration.md`); their defaults are here too.
"""

from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20

CHAIN_LINKS_MAX: Final = 8
"""Principals in one chain, the root included. A longer chain is refused, never truncated."""

NAME_BYTES_MAX: Final = 256
"""UTF-8 bytes of one principal, agent, session, action or tool name. A longer one is refused."""

RESOURCE_BYTES_MAX: Final = 1024
"""UTF-8 bytes of one resource uid."""

STRING_BYTES_MAX: Final = 4 * KIB
"""UTF-8 bytes of any one text in a record."""

RECORD_BYTES_MAX: Final = 16 * KIB
"""Bytes of one record in a spool, padding included."""

LINE_BYTES_MAX: Final = 64 * KIB
"""Bytes of one line of a recorded-calls file."""

SEGMENT_BYTES: Final = 8 * MIB
"""Bytes of one spool segment, allocated when it is opened."""

SPOOL_BYTES_MAX: Final = 128 * MIB
"""Bytes of one door's spool. Reaching it: allowed calls wait or are refused; `SPOOL_RESERVED_BYTES` stays for refusals."""

SPOOL_RESERVED_BYTES: Final = 8 * MIB
"""The part of a spool that only refusals and the effects of calls already let out may use."""

OUTBOX_BYTES_MAX: Final = 1024 * MIB
"""Bytes of one host's outbox. Reaching it: nothing more is sealed, so spools fill and calls wait."""

FRAME_RECORDS_MAX: Final = 4000
"""Records in one frame."""

FRAME_BYTES_MAX: Final = 900 * KIB
"""Bytes of one frame on the wire: below Kafka's default of 1 MiB."""

FRAME_INFLATED_BYTES_MAX: Final = 64 * MIB
"""Bytes of a frame's payload once decompressed. A header that claims more is refused before anything is allocated."""

FRAME_RANGES_MAX: Final = 1024
"""Door boots that one cut may draw from."""

INFLIGHT_BYTES_MAX: Final = 3_000_000
"""Bytes per partition that are sent but not stored, on the embedded broker (it drops the oldest above 5 MiB)."""

LANE_AHEAD_MAX: Final = 4096
"""How far beyond a missing frame a lane is stored. What is further is put off: not stored, and sent again by its host."""

POLICY_FILE_BYTES_MAX: Final = 4 * MIB
"""Bytes of one policy file."""

POLICIES_MAX: Final = 100_000
"""Policies in one set."""

ENTRY_BYTES_MAX: Final = 64 << 10
"""Bytes of one message on the control topic. A larger one is refused."""

ENTRY_KEY_BYTES_MAX: Final = 2048
"""Bytes of the key of a control entry."""

CHUNK_BYTES: Final = 768 << 10
"""Bytes of one chunk of a packed policy bundle: below the 1 MiB that a Kafka topic takes by default."""

BUNDLE_BYTES_MAX: Final = 256 * MIB
"""Bytes of a policy bundle, unpacked. A set that compiles to more is refused."""

EMBEDDED_LOG_BYTES_MAX: Final = 2 * MIB
"""Bytes of live control entries, and of the packed bundle, on the embedded broker, which drops the oldest above 5 MiB.
Reaching it: the change is refused; a Kafka has no such limit."""

ACK_BYTES_MAX: Final = 128 << 10
"""Bytes of one message on the topic of acknowledgements: more than DOORS_MAX doors need. A larger one is refused."""

DOORS_MAX: Final = 256
"""Doors that one acknowledgement names."""

HEADER_BYTES_MAX: Final = 64 * KIB
"""Bytes of the head of an HTTP request or response at an egress door. A longer one is refused (431) or fails (502)."""

AGENTS_MAX: Final = 100_000
"""Agents that a host hands to its doors. Reaching it: the board is stale, so nothing is permitted."""

OPEN_CALLS_MAX: Final = 131_072
"""Calls that a worker keeps until their end comes, to know whose bytes it names. Reaching it: the one that was not heard of for
longest makes room, counted, and the bytes of its end count for nobody."""

DETECT_LANES_MAX: Final = 4096
"""Lanes of which a partition of `egress` knows the frames that were taken. Reaching it: the one used least lately, counted."""
