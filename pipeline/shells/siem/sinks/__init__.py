"""Where events go. Each takes a batch as a whole, or says why not and who must act; nothing here retries.

`interface` is what they have in common; `file` appends lines, `splunk` posts to the HTTP Event Collector, `syslog` writes to a
TLS connection, `kafka` to the topic `alerts`; `tls` makes the TLS settings of those that need some.
"""

from concurrent.futures import Executor
from pathlib import Path

from pipeline.shells.siem.sinks.file import FileSink
from pipeline.shells.siem.sinks.interface import Sink
from pipeline.shells.siem.sinks.kafka import KafkaSink
from pipeline.shells.siem.sinks.splunk import SplunkSink
from pipeline.shells.siem.sinks.syslog import SyslogSink
from schemas import siem
from schemas.config import Config, Siem
from schemas.errors import OperatorFault
from schemas.home import Home

__all__ = ["Sink", "cursor_path", "sink_of", "tables"]


def tables(config: Config) -> list[Siem]:
    """The sinks that are fed: those that are configured, and the topic, which always is."""
    own = list(config.siem)
    if not any(sink.kind == siem.KAFKA for sink in own):
        own.append(Siem(name=siem.ALERTS, kind=siem.KAFKA))
    return own


def sink_of(home: Home, config: Config, table: Siem, thread: Executor) -> Sink:
    """The sink of a table; what blocks, it does in `thread`. Raises OperatorFault for a file that is not as it must be."""
    match table.kind:
        case siem.FILE:
            return FileSink(table, home.root / table.path, thread)
        case siem.SPLUNK:
            return SplunkSink(table)
        case siem.SYSLOG:
            return SyslogSink(table, thread)
        case siem.KAFKA:
            return KafkaSink(home, config)
        case _:
            raise OperatorFault(f"siem.kind: `{table.kind}` is none of {', '.join(siem.KINDS)}")


def cursor_path(home: Home, name: str) -> Path:
    """How far a sink is."""
    return home.siem / f"{name}.json"
