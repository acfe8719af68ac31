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

EGRESS_BYTES_MAX: Final = 3_000_000
"""Bytes per partition of `egress` that are sent but not taken, on the embedded broker. Reaching it: the intake waits."""

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

BEACON_PAIRS_MAX: Final = 16_384
"""Pairs of agent and host of which a worker's partitions of `egress` know when they spoke, together. Reaching it: what was
heard of longest ago makes room, counted, where most is kept; so for the limits below."""

BEACON_DAYS_MAX: Final = 8_192
"""Days of such pairs, each of BEACON_SECONDS_MAX at most."""

BEACON_SECONDS_MAX: Final = 512
"""Seconds with calls that are kept of a pair's day: the latest. Of those before them the hours keep their counts."""

DENY_AGENTS_MAX: Final = 16_384
"""Agents whose refusals a worker's partitions of `egress` know."""

DENY_WINDOWS_MAX: Final = 32_768
"""Their windows with refusals in all."""

VOLUME_AGENTS_MAX: Final = 16_384
"""Agents of which a worker's partitions of `egress` know what they sent."""

VOLUME_DAYS_MAX: Final = 16_384
"""Their days in all."""

SEQUENCE_TASKS_MAX: Final = 32_768
"""Tasks of which a worker's partitions of `egress` know the tools."""

SEQUENCE_TOOLS_MAX: Final = 32
"""Tools of one task. Reaching it: a further one is not looked at, counted."""

SEQUENCE_PAIRS_MAX: Final = 262_144
"""Tools and pairs of tools that agents are known to have called, in all. Reaching it: the agent that was not heard of for
longest is forgotten, counted."""

STITCH_TRACES_MAX: Final = 500_000
"""Traces that a worker holds to put together. Reaching it: the one that nothing has touched for longest is put away, counted;
should more of it come, it is read back from the store."""

STITCH_CALLS_MAX: Final = 750_000
"""Calls of those traces. Reaching it: as STITCH_TRACES_MAX."""

TRACE_CALLS_MAX: Final = 2048
"""Calls of one trace that are put together. More are stored and counted; the trace is a gap then."""

STITCH_GONE_MAX: Final = 1 << 20
"""Traces that were put away and are still known to be so. One that is forgotten begins anew if more of it comes, counted."""

STITCH_TEXT_BYTES_MAX: Final = 32 * MIB
"""Bytes of the chains that the traces in memory name. Reaching it: as STITCH_TRACES_MAX."""

TRACE_SETTLE_S: Final = 10
"""How long nothing of a trace has come when it is no more provisional, seconds."""

LEAK_PAIRS_MAX: Final = 65_536
LEAK_ITEMS_MAX: Final = 524_288
LEAK_NAMES_MAX: Final = 1024
LEAK_QUERIES_MAX: Final = 256
"""What the leak meter keeps: pairs of agent and domain, their distinct names and queries in all, and those of one pair.
Reaching the first two: the pair used least lately makes room, counted; the last two: the names or queries of fewest bits."""

FIRST_SEEN_PAIRS_MAX: Final = 65_536
"""Pairs of domain and agent whose days are kept. Reaching it: the domain used least lately makes room, counted."""

HOLDERS_MAX: Final = 32
HOLDER_CREDENTIALS_MAX: Final = 65_536
"""Holders of one credential that are kept, the earliest, and credentials. Reaching the second: the one used least lately makes
room, counted."""

LEAK_SAID_MAX: Final = 16_384
"""Pairs of which the leak meter knows what it has said. Reaching it: the oldest is forgotten, and would be said again."""
