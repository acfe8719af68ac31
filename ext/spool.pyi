from ext.runs import Run as Run
from ext.runs import SpoolReader as SpoolReader

__all__ = ["Run", "SpoolReader", "SpoolWriter"]

class SpoolWriter:
    """Appends one door's records to the segments in a folder; all sizes in bytes.

    A folder that has segments is gone on with behind its last sound record: what follows that is zeroed, later segments become
    `NNNNNNNN.torn`. `after_seq` is the last record that the host has sealed: after a loss of power more may be sealed than
    stands in the spool, and no seq is used twice. The next segment is made only while all of them stay within `spool_bytes`,
    the last `reserved_bytes` of which only `reserved` appends may use. Segments that the host removes are room again.

    Raises OperatorFault for limits that leave no room for two segments, for a folder of another boot, and where a damaged
    header leaves it unknown which record was the last; SpoolFull where there is no room; OSError where the folder cannot be
    used.
    """

    def __init__(
        self, folder: str, boot: int, segment_bytes: int, spool_bytes: int, reserved_bytes: int, after_seq: int = 0
    ) -> None: ...
    @property
    def boot(self) -> int: ...
    @property
    def last_seq(self) -> int:
        """The seq of the last record, 0 before the first."""

    @property
    def last_ref(self) -> int:
        """The highest `ref` of any record, 0 before the first."""

    def append(
        self,
        kind: int,
        call_seq: int,
        time_ns: int,
        recorded_ns: int,
        verdict: int,
        outcome: int,
        mode: int,
        depth: int,
        status: int,
        count: int,
        bytes_out: int,
        bytes_in: int,
        duration_ns: int,
        epoch: int,
        ref: int,
        query_hash: int,
        query_bytes: int,
        query_bits: int,
        trace_id: bytes,
        parent_span: bytes,
        texts: tuple[str, ...],
        reserved: bool,
        /,
    ) -> int:
        """Write one record, wholly or not at all; returns its seq. Nothing is allocated but that number.

        `call_seq` 0 means its own seq (a decision). The fields have the widths of `schemas/layout.py`; `texts` are in the order
        of `schemas.records.STRING_FIELDS`. The record outlives this process at once, and the machine once the kernel has
        written it out. Raises SpoolFull (the limit, or a disk that is full: try again later), AgentFault naming the text that
        is too long or has no UTF-8, OverflowError for a number that its field cannot hold.
        """

    def put(
        self,
        record: tuple[
            int, int, int, int, int, int, int, int, int, int, int, int, int, int, int, int, int, int, bytes, bytes,
            tuple[str, ...], bool,
        ],
        /,
    ) -> int:
        """The same of what `append` has as arguments. Raises ValueError and TypeError for what is no record besides."""

    def complete(
        self, seq: int, outcome: int, status: int, bytes_out: int, bytes_in: int, duration_ns: int, address: str, /
    ) -> bool:
        """Write how a call ended into the record of its decision `seq`, which let it out; returns whether it is there now.

        False, and nothing is changed: the host has read the decision, it lies too far back or in an earlier segment, or the
        address is longer than END_ADDRESS_BYTES. Then the end is a record of its own. Not for a call that has other records.
        """

    def prepare(self) -> None:
        """Make the next segment now, unless it is there or there is no room for it; may run in another thread than `append`."""

    def close(self) -> None:
        """Let go of the folder. The records stay."""
