"""The bytes of a spool: segments and records, little-endian, every record 8-byte aligned.

Segment header, 64 bytes:

    0  magic `WLSPOOL1`      8  boot u64          16  index u64 (1, 2, 3 ...)
    24 first_seq u64         32 ref_before u64    40  bytes u64 (whole segment)
    48 check u32, `mix32` over bytes 0 .. 48      52 reserved

Record:

    0   size u32      the whole record; written last, with a release store: 0 means "nothing here yet"
    4   check u32     `mix32` over bytes 8 .. size (a torn page after power loss shows here)
    8   seq u64       16 call_seq u64   24 time_ns i64      32 recorded_ns i64
    40  bytes_out u64 48 bytes_in u64   56 duration_ns u64  64 epoch u64
    72  ref u64       80 query_hash u64 88 query_bytes u32  92 query_bits u32
    96  count u32     100 status i32    104 kind u8, verdict u8, outcome u8, mode u8
    108 depth u8      109 room u8, 2 zero bytes             112 trace_id [16]   128 parent_span [8]
    136 lengths u16 x 20                176 the texts, one after another, in `STRING_FIELDS` order; zero padding to 8

Room for the end, 88 bytes behind the padding where `room` is 1: in each decision that lets a call out. `check` leaves them out.

    0   word u32      0 nobody's, 1 the host has read the decision, 2 the end is there: turned once, by compare-and-swap
    4   check u32     `mix32` over the bytes behind it
    8   duration_ns u64                 16 bytes_out u64    24 bytes_in u64     32 status i32
    36  outcome u8    37 length u8      38 two zero bytes   40 address [48]     of `length` bytes, UTF-8, zero padding

A call that ends before the host has read its decision needs no other record: the door fills in the room and turns the word to
2, the host takes both as one. Where the host came first, or the end says more than fits, the end is a record of its own.

`ref` is the caller's own number for the call (the line of a replayed file), 0 when there is none. `call_seq` is the
decision's seq: its own for a decision. `mix32` is defined in `ext/layout.pxd`.
"""

from typing import Final

SEGMENT_MAGIC: Final = b"WLSPOOL1"
SEGMENT_HEADER_BYTES: Final = 64
RECORD_HEADER_BYTES: Final = 176
STRINGS: Final = 20
END_BYTES: Final = 88
END_ADDRESS_BYTES: Final = 48
"""Bytes of the address in a decision's own end: any address and port."""

VERDICT_UNSAID: Final = 255
"""The verdict byte of a record that does not speak about the verdict (progress, most effects)."""
