"""How a process of ours is watched: log lines on stderr, figures for Prometheus on a loopback port."""

import logging
import sys
import time
from typing import Final

from prometheus_client import start_http_server

QUIET_S: Final = 5.0
"""One `aiokafka` line of a kind in this time: its clients write hundreds a second while a broker is away."""


class _Sparing(logging.Filter):
    """Lets the first of many equal lines pass, then one each QUIET_S."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        key, now = (record.pathname, record.lineno), time.monotonic()
        if now - self._last.get(key, -QUIET_S) < QUIET_S:
            return False
        self._last[key] = now
        return True


def setup_logging(name: str, *, level: int = logging.INFO) -> None:
    """Send this process's log to stderr, one line each, with the process's name."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s {name} %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for chatty in ("aiokafka", "kafka"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    handler.addFilter(_only_for("aiokafka", _Sparing()))


def _only_for(prefix: str, inner: logging.Filter) -> logging.Filter:
    class _Gate(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            return bool(inner.filter(record)) if record.name.startswith(prefix) else True

    return _Gate()


def serve_metrics(port: int = 0) -> str:
    """Answer Prometheus on loopback; returns HOST:PORT (port 0: a free one)."""
    server, _ = start_http_server(port, addr="127.0.0.1")
    return f"127.0.0.1:{server.server_port}"
