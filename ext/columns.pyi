from typing import Any

def partition_of(trace_id: bytes, partitions: int) -> int:
    """Kafka's default partition of a key: (murmur2(key) & 0x7fffffff) % partitions. Raises ValueError for no partitions."""

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

    def batches(self) -> list[tuple[int, Any]]:
        """(partition, pyarrow.RecordBatch of schemas.frame.ARROW_SCHEMA) by partition, records in order; then starts anew."""
