"""The embedded broker: librdkafka's mock cluster, one node, in memory, reached by ctypes.

It speaks Kafka's protocol well enough for one worker and our own flow control, and no further: it drops the oldest above 5 MiB
a partition without a word, forgets everything at its end, picks its own port, and cannot rebalance. So whoever talks to it
looks its address up again when it reconnects (`schemas.links`), and nothing is forgotten elsewhere before the store has it.
"""

import ctypes
import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any, Final

import confluent_kafka
from prometheus_client import Gauge

from schemas.config import Config
from schemas.errors import OperatorFault
from schemas.home import Home
from schemas.process import private_dir, write_run_file
from schemas.telemetry import serve_metrics
from schemas.topics import Topics

log = logging.getLogger(__name__)

_PRODUCER: Final = 0
_ERROR_BYTES: Final = 512

PARTITIONS = Gauge("wardline_broker_partitions", "Partitions of the embedded broker", ["topic"])


def library_path() -> Path:
    """The librdkafka that confluent-kafka brings. Raises OperatorFault when this build of it brings none."""
    folder = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    found = sorted(folder.glob("librdkafka*.so*"))
    if not found:
        raise OperatorFault(f"{folder}: has no librdkafka, so there is no embedded broker; use --kafka")
    return found[0]


class MockCluster:
    """A running mock cluster. Its threads belong to librdkafka; `close` ends them."""

    def __init__(self, topics: dict[str, int]) -> None:
        """Start with these topics and partition counts. Raises OperatorFault with librdkafka's own word when it cannot."""
        self._lib = lib = ctypes.CDLL(str(library_path()))
        pointer, text = ctypes.c_void_p, ctypes.c_char_p
        _sign(lib.rd_kafka_conf_new, pointer)
        _sign(lib.rd_kafka_conf_set, ctypes.c_int, pointer, text, text, text, ctypes.c_size_t)
        _sign(lib.rd_kafka_new, pointer, ctypes.c_int, pointer, text, ctypes.c_size_t)
        _sign(lib.rd_kafka_destroy, None, pointer)
        _sign(lib.rd_kafka_mock_cluster_new, pointer, pointer, ctypes.c_int)
        _sign(lib.rd_kafka_mock_cluster_destroy, None, pointer)
        _sign(lib.rd_kafka_mock_cluster_bootstraps, text, pointer)
        _sign(lib.rd_kafka_mock_topic_create, ctypes.c_int, pointer, text, ctypes.c_int, ctypes.c_int)
        _sign(lib.rd_kafka_mock_group_initial_rebalance_delay_ms, None, pointer, ctypes.c_int32)
        _sign(lib.rd_kafka_err2str, text, ctypes.c_int)
        problem = ctypes.create_string_buffer(_ERROR_BYTES)
        settings = lib.rd_kafka_conf_new()
        # errors only: it would warn that the client around the mock has no broker to connect to
        lib.rd_kafka_conf_set(settings, b"log_level", b"3", problem, _ERROR_BYTES)
        self._handle = lib.rd_kafka_new(_PRODUCER, settings, problem, _ERROR_BYTES)
        if not self._handle:
            raise OperatorFault(f"the embedded broker cannot start: {problem.value.decode(errors='replace')}")
        self._cluster = lib.rd_kafka_mock_cluster_new(self._handle, 1)
        if not self._cluster:
            raise OperatorFault("the embedded broker cannot start: no mock cluster")
        lib.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 0)
        for name, partitions in topics.items():
            code = lib.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1)
            if code:
                raise OperatorFault(f"topic `{name}` cannot be made: {lib.rd_kafka_err2str(code).decode()}")
        self.address = str(lib.rd_kafka_mock_cluster_bootstraps(self._cluster).decode())

    def close(self) -> None:
        """Stop listening and forget everything."""
        self._lib.rd_kafka_mock_cluster_destroy(self._cluster)
        self._lib.rd_kafka_destroy(self._handle)


def _sign(function: Any, result: Any, *arguments: Any) -> None:
    function.restype = result
    function.argtypes = arguments


def run(home: Home, config: Config, *, metrics_port: int = 0) -> int:
    """Run the embedded broker until SIGTERM or SIGINT; returns the exit code. The address is in `run/broker.json`."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    path = private_dir(home.run) / "broker.json"
    said = {"name": "broker", "pid": os.getpid(), "state": "starting", "address": "", "metrics": ""}
    write_run_file(path, said)
    topics = Topics(config.kafka.prefix)
    counts = {topics.calls: config.kafka.partitions, topics.stored: 1, topics.deadletter: 1,
              topics.control: 1, topics.bundles: 1, topics.acks: 1, topics.egress: config.kafka.partitions,
              topics.findings: 1, topics.alerts: config.kafka.partitions}  # fmt: skip
    cluster = MockCluster(counts)
    for topic, partitions in counts.items():
        PARTITIONS.labels(topic).set(partitions)
    said |= {"state": "ready", "address": cluster.address, "metrics": serve_metrics(metrics_port)}
    write_run_file(path, said)
    log.info("the embedded broker listens on %s", cluster.address)
    while not stop.wait(3600):
        pass
    write_run_file(path, {**said, "state": "stopping"})
    cluster.close()
    path.unlink(missing_ok=True)
    return 0
