"""The embedded broker in this process, for tests that need a broker and not its command."""

import contextlib
from collections.abc import Iterator

from pipeline.shells.broker import MockCluster
from schemas.topics import Topics


@contextlib.contextmanager
def broker(partitions: int = 4) -> Iterator[str]:
    """HOST:PORT of a fresh embedded broker with our topics."""
    topics = Topics()
    cluster = MockCluster({topics.calls: partitions, topics.stored: 1, topics.deadletter: 1})
    try:
        yield cluster.address
    finally:
        cluster.close()
