"""How the commands that show calls ask the store: our own questions, the user's words as parameters, times as UTC."""

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from pipeline.cli.common import clock
from pipeline.cli.sql import CONNECT_S, one_line
from schemas.config import Config
from schemas.errors import AgentFault, PeerFault
from schemas.home import Home
from schemas.links import store_link
from schemas.vocabulary import parse_uid

ANSWER_S: Final = 180
"""How long one answer may take: more than `store.query_seconds` gives a query by default."""

_ZERO: Final = re.compile(r"0+")


class Asker:
    """The store as its reader. It is looked for again after a fault: an embedded one comes back under another port."""

    def __init__(self, home: Home, config: Config) -> None:
        self._home = home
        self._config = config
        self._client: Any = None

    def rows(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        """What a question of ours finds, column by column; times have their zone. `{name:Type}` in it are `parameters`.

        Raises PeerFault while the store is away, and with its own words where it does not answer this.
        """
        # imported here: the command line starts without the client, which takes as long as all the rest
        from clickhouse_connect import get_client
        from clickhouse_connect.driver.exceptions import ClickHouseError, OperationalError

        link = store_link(self._home, self._config, "reader")
        try:
            if self._client is None:
                self._client = get_client(**link.options(), database=link.database, connect_timeout=CONNECT_S,
                                          send_receive_timeout=ANSWER_S, autogenerate_session_id=False)  # fmt: skip
            found = self._client.query(sql, parameters=parameters)
        except (OperationalError, OSError) as fault:
            self.close()
            raise PeerFault(f"the store at {link.host}:{link.port} does not answer") from fault
        except ClickHouseError as fault:
            self.close()
            raise PeerFault(f"the store at {link.host}:{link.port}: {one_line(str(fault))[:300]}") from fault
        return [dict(zip(found.column_names, map(_value, row), strict=True)) for row in found.result_rows]

    def close(self) -> None:
        """Let the connection go."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):
                client.close()


@contextlib.contextmanager
def asking(home: Home, config: Config) -> Iterator[Asker]:
    """An Asker for the time of one command."""
    asker = Asker(home, config)
    try:
        yield asker
    finally:
        asker.close()


def _value(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    if isinstance(value, bytes):
        return value.decode(errors="replace")  # a text of the store that is no UTF-8
    return value


def jsonable(row: dict[str, Any]) -> dict[str, Any]:
    """A row as `json` takes it: times in ISO 8601, UTC, to the microsecond."""
    return {name: stamp(value) if isinstance(value, datetime) else value for name, value in row.items()}


def stamp(when: datetime) -> str:
    """`2026-01-31T12:00:00.000000Z`."""
    return f"{when:%Y-%m-%dT%H:%M:%S.%f}Z"


def shown_time(when: datetime | None) -> str:
    """A time as a person reads it, UTC, to the millisecond."""
    return f"{clock(when.timestamp())}.{when.microsecond // 1000:03d}" if when is not None else "-"


def shown_span(ms: float) -> str:
    """Milliseconds as a person reads them."""
    if ms < 1_000:
        return f"{ms:.1f} ms"
    if ms < 60_000:
        return f"{ms / 1_000:.1f} s"
    minutes = int(ms // 60_000)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {int(ms // 1_000) % 60} s"


def named(uid: str) -> str:
    """What a uid names, without its type; a text that is no uid as it is."""
    with contextlib.suppress(AgentFault):
        return parse_uid(uid)[1]
    return uid


def known(trace: str) -> str:
    """A hex id, or nothing where all its digits are 0."""
    return "" if _ZERO.fullmatch(trace) else trace
