from typing import Any

def partition_of(trace_id: bytes, partitions: int) -> int:
    """Kafka's default partition of a key: (murmur2(key) & 0x7fffffff) % partitions. Raises ValueError for no partitions."""

class Batch:
    """The columns of one partition, and the owner of their memory."""

    @property
    def records(self) -> int:
        """At least one."""

    def stream(self) -> bytes:
        """An Arrow IPC stream of this batch alone."""

    def arrow(self) -> Any:
        """The same memory as Arrow sees it: a pyarrow.RecordBatch of `schemas.frame.ARROW_SCHEMA`."""

class Columns:
    """Collects runs of records and gives them back as Arrow batches, one dictionary per text column and batch.

    A batch has at most `batch_records` records; a partition that has more gets several batches.
    """

    def __init__(self, partitions: int, batch_records: int = ...) -> None: ...
    @property
    def records(self) -> int:
        """How many records were added since the last `batches`."""

    def add(self, view: memoryview) -> None:
        """Copy the records of `Run.view`. Raises ValueError, and takes nothing, where the bytes are not whole records."""

    def parts(self) -> list[tuple[int, Batch]]:
        """(partition, batch) by partition, records in order; then starts anew."""

    def batches(self) -> list[tuple[int, Any]]:
        """`parts` as RecordBatches."""
