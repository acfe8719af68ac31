"""ClickHouse's HTTP protocol in front of the engine.

    request -> user -> body into memory -> guard -> engine (an insert's data stays where it is) -> answer, packed as asked

What a server does with `query`, `database`, `default_format`, `param_NAME`, `session_id`, settings as query parameters, content
encodings and the X-ClickHouse headers is done here in the same way. What is not served (external tables, native block
compression) is refused by name.
"""

import asyncio
import json
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
from aiohttp import BodyPartReader, web
from prometheus_client import Counter, Gauge, Histogram

from pipeline.shells.store.engine import Answer, Ask, Engine, EngineError
from pipeline.shells.store.guard import Guard
from pipeline.shells.store.memory import BODY_BYTES_MAX, Memory
from pipeline.shells.store.refusal import (
    NOT_IMPLEMENTED,
    READONLY,
    SESSION_NOT_FOUND,
    SYNTAX_ERROR,
    TOO_LARGE,
    UNEXPECTED_METHOD,
    Refusal,
)
from pipeline.shells.store.sessions import TIMEOUT_S, Sessions
from pipeline.shells.store.statement import Statement
from pipeline.shells.store.users import Users
from schemas.store import WANTED_SOON, quote_name

log = logging.getLogger(__name__)

QUERY_BYTES_MAX: Final = 1 << 20
"""Bytes of one query's text; of an insert, up to where its data begins. More is refused with 413."""

COMPRESS_FROM_BYTES: Final = 1024
"""Smaller results are not packed."""

NO_SETTINGS: Final = frozenset({"query", "user", "password", "database", "default_format", "session_id", "session_timeout",
                                "session_check", "query_id", "quota_key", "compress", "decompress", "buffer_size",
                                "wait_end_of_query", "client_protocol_version", "role", "stacktrace", "readonly",
                                "close_session"})  # fmt: skip
"""Query parameters that are about the request and not for the engine."""

ENCODINGS: Final[Mapping[str, str]] = {"zstd": "zstd", "lz4": "lz4", "gzip": "gzip", "br": "brotli"}
CONTENT_TYPES: Final[Mapping[str, str]] = {
    "tabseparated": "text/tab-separated-values; charset=UTF-8", "tsv": "text/tab-separated-values; charset=UTF-8",
    "tabseparatedwithnames": "text/tab-separated-values; charset=UTF-8", "csv": "text/csv; charset=UTF-8; header=absent",
    "csvwithnames": "text/csv; charset=UTF-8; header=present", "json": "application/json; charset=UTF-8",
    "jsoncompact": "application/json; charset=UTF-8", "jsoneachrow": "application/x-ndjson; charset=UTF-8",
    "native": "application/octet-stream", "arrow": "application/octet-stream", "arrowstream": "application/octet-stream",
    "parquet": "application/octet-stream", "rowbinary": "application/octet-stream",
    "rowbinarywithnamesandtypes": "application/octet-stream",
}  # fmt: skip

NOT_FOUND: Final = frozenset({46, 47, 50, 56, 60, 73, 81, 115})
FORBIDDEN: Final = frozenset({164, 497})
TROUBLE: Final = frozenset({49, 74, 75, 76, 159, 209, 210, 225, 236, 241, 242, 243, 252, 319, 394, 1000, 1001, 1002})
"""Codes that say that the store is in trouble (500). All others blame the query (4xx)."""

REQUESTS = Counter("wardline_store_requests", "Requests", ["user", "kind", "status"])
REFUSALS = Counter("wardline_store_refusals", "Requests that the front refused, by ClickHouse's code", ["code"])
INSERTED = Counter("wardline_store_inserted_rows", "Rows of inserts that were acknowledged")
RECEIVED = Counter("wardline_store_received_bytes", "Bytes of request bodies as sent")
SECONDS = Histogram("wardline_store_seconds", "Seconds in the engine", ["kind"])
READING = Gauge("wardline_store_reading", "Reads that are queued or running")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """One request whose user is known and whose body has come."""

    user: str
    writer: bool
    query_id: str
    given: Mapping[str, str]
    headers: Mapping[str, str]
    may_write: bool

    @property
    def params(self) -> dict[str, str]:
        """The values of `{NAME:Type}`, from `param_NAME`."""
        return {name.removeprefix("param_"): value for name, value in self.given.items() if name.startswith("param_")}


class Front:
    """The HTTP application."""

    def __init__(self, engine: Engine, users: Users, guard: Guard, database: str) -> None:
        """Serve `engine`; `database` is where names are looked up when a request names none."""
        self._database = database
        self._engine = engine
        self._users = users
        self._guard = guard
        self._sessions = Sessions()

    def app(self) -> web.Application:
        """The routes: as on a server, every path but `/ping` is the same."""
        app = web.Application()
        app.router.add_route("*", "/ping", self._ping)
        app.router.add_route("*", "/replicas_status", self._ping)
        app.router.add_route("*", "/{anything:.*}", self._handle)
        return app

    async def _ping(self, _: web.Request) -> web.Response:
        return web.Response(text="Ok.\n")

    async def _handle(self, http: web.Request) -> web.Response:
        query_id = _printable(http.query.get("query_id", "")) or secrets.token_hex(16)
        user, kind, body = "", "refused", Memory.nothing()
        try:
            if http.method not in ("GET", "HEAD", "POST"):
                raise Refusal(UNEXPECTED_METHOD, f"method `{http.method[:16]}` is not served")
            user = self._users.check(http.headers, http.query)
            writer = self._users.writes(user)
            body = Memory(BODY_BYTES_MAX if writer else QUERY_BYTES_MAX)
            given = {**http.query, **await _receive(http, body)}
            RECEIVED.inc(body.size)
            codec = _codec(http.headers.get("Content-Encoding", "identity").lower())
            if codec and body.size:
                body = await asyncio.to_thread(body.unpacked, codec)
            request = _Request(user=user, writer=writer, query_id=query_id, given=given, headers=http.headers,
                               may_write=http.method == "POST" and "readonly" not in given)  # fmt: skip
            kind, body, response = await self._answer(request, body)
        except Refusal as refusal:
            REFUSALS.labels(refusal.code).inc()
            response = self._error(refusal.code, refusal.name, str(refusal), refusal.status)
        except EngineError as fault:
            response = self._error(fault.code, fault.name, str(fault), _status(fault.code))
        except Exception as fault:
            # a client that left in mid-body (nothing was inserted) or a bug of ours; a query may hold secrets, so only the kind
            log.warning("request %s failed: %s", query_id, type(fault).__name__)
            response = self._error(1001, "STD_EXCEPTION", f"the request failed: {type(fault).__name__}", 500)
        finally:
            body.close()
        response.headers["X-ClickHouse-Query-Id"] = query_id
        response.headers["X-ClickHouse-Server-Display-Name"] = "wardline"
        response.headers["X-ClickHouse-Timezone"] = self._engine.timezone
        REQUESTS.labels(user, kind, response.status).inc()
        READING.set(self._engine.waiting)
        return response

    def _error(self, code: int, name: str, message: str, status: int) -> web.Response:
        text = f"Code: {code}. DB::Exception: {message.rstrip('.')}. ({name}) (version {self._engine.version})\n"
        response = web.Response(text=text, status=status)
        response.headers["X-ClickHouse-Exception-Code"] = str(code)
        if status == 401:
            response.headers["WWW-Authenticate"] = 'Basic realm="ClickHouse server HTTP API"'
        return response

    async def _answer(self, request: _Request, body: Memory) -> tuple[str, Memory, web.Response]:
        """Returns the kind of request, the body that is still ours to close, and the response."""
        text = request.given.get("query", "").encode()
        if not text and not body.size:
            return "hello", body, web.Response(text="Ok.\n")
        text += b"\n" if text else b""
        before = len(text)
        text += body.head(max(0, QUERY_BYTES_MAX + 1 - before))
        whole = len(text) == before + body.size and len(text) <= QUERY_BYTES_MAX
        too_long = Refusal(TOO_LARGE, f"the query has more than {QUERY_BYTES_MAX} bytes")
        try:
            statement = self._guard.analyse(text, writer=request.writer, whole=whole, params=request.params)
        except Refusal as refusal:
            # a text that was cut is no statement
            raise (refusal if whole or refusal.code != SYNTAX_ERROR[0] else too_long) from None
        if statement.data is None and not whole:
            raise too_long
        try:
            if statement.reads:
                ask = self._ask(request, statement, text.decode())
                return "read", body, await self._read(request, statement, ask)
            if not request.may_write:
                raise Refusal(READONLY, "only POST without `readonly` may write")
            if statement.data is not None:
                begins = statement.data.begins
                body = body.without(max(0, begins - before), text[begins:before])
                sql = statement.data.read_from(text, body.path)
            else:
                sql = text.decode()
        except UnicodeDecodeError:
            raise Refusal(SYNTAX_ERROR, "the query is not UTF-8") from None
        # a client that leaves while its insert waits ends this request, and what the request closes must not be the insert's
        # data: another body would get its number, and the insert would read that
        ask = self._ask(request, statement, sql)
        return "write", Memory.nothing(), await self._write(ask, body.handed_over(), soon=statement.into in WANTED_SOON)

    def _ask(self, request: _Request, statement: Statement, sql: str) -> Ask:
        given, settings = request.given, []
        for name, value in given.items():
            if name not in NO_SETTINGS and not name.startswith("param_"):
                self._guard.setting(name)
                self._guard.cap(name, value)
                settings.append((name, value))
        if statement.data is not None and statement.data.format == "Values":
            # rows that the guard has not read are data: an expression among them is an error
            settings.append(("input_format_values_interpret_expressions", "0"))
        named = given.get("default_format") or request.headers.get("X-ClickHouse-Format")
        return Ask(
            sql=sql, output=statement.output or named or "TabSeparated", tag=f"{request.query_id}-{secrets.token_hex(4)}",
            database=given.get("database") or request.headers.get("X-ClickHouse-Database") or "",
            # inside the engine 1 also refuses every table function that reads files, and 2 lets a query bring settings
            level=0 if not statement.reads else 2 if statement.settings or statement.verb == "set" else 1,
            said=(f"USE {quote_name(self._database)}", *self._said(request)), settings=tuple(settings),
            params=request.params,
        )  # fmt: skip

    def _said(self, request: _Request) -> tuple[str, ...]:
        name = request.given.get("session_id")
        if not name:
            return ()
        try:
            timeout_s = float(request.given.get("session_timeout") or TIMEOUT_S)
        except ValueError:
            timeout_s = TIMEOUT_S
        there, said = self._sessions.open(request.user, name, timeout_s)
        if not there and request.given.get("session_check") == "1":
            raise Refusal(SESSION_NOT_FOUND, "there is no such session, or its time is over")
        return said

    async def _read(self, request: _Request, statement: Statement, ask: Ask) -> web.Response:
        answer = await self._engine.read(ask, own=request.writer)
        SECONDS.labels("read").observe(answer.seconds)
        if statement.verb in ("set", "use") and (name := request.given.get("session_id")):
            self._sessions.say(request.user, name, ask.sql)
        wanted = request.headers.get("Accept-Encoding", "") if request.given.get("enable_http_compression") != "0" else ""
        accepted = {part.partition(";")[0].strip().lower() for part in wanted.split(",")}
        encoding = next((name for name in ENCODINGS if name in accepted), "")
        if not encoding or len(answer.view) < COMPRESS_FROM_BYTES:
            return _result(ask, answer, bytes(answer.view))
        codec = pa.Codec(ENCODINGS[encoding])
        packed = await asyncio.to_thread(lambda: codec.compress(pa.py_buffer(answer.view), asbytes=True))
        response = _result(ask, answer, packed)
        response.headers["Content-Encoding"] = encoding
        return response

    async def _write(self, ask: Ask, body: Memory, *, soon: bool) -> web.Response:
        # the data is closed behind the insert and not by the request: a client that leaves does not end its insert
        answer = await asyncio.shield(self._engine.write(ask, body.close, soon=soon))
        SECONDS.labels("write").observe(answer.seconds)
        INSERTED.inc(answer.summary["written_rows"])
        response = web.Response(body=bytes(answer.view))
        response.headers["X-ClickHouse-Summary"] = _summary(answer)
        return response


def _result(ask: Ask, answer: Answer, data: bytes) -> web.Response:
    response = web.Response(body=data)
    response.headers["Content-Type"] = CONTENT_TYPES.get(ask.output.lower(), "text/plain; charset=UTF-8")
    response.headers["X-ClickHouse-Format"] = _printable(ask.output)
    response.headers["X-ClickHouse-Summary"] = _summary(answer)
    return response


def _summary(answer: Answer) -> str:
    return json.dumps({name: str(value) for name, value in answer.summary.items()})


def _status(code: int) -> int:
    if code == 202:
        return 503
    return 404 if code in NOT_FOUND else 403 if code in FORBIDDEN else 500 if code in TROUBLE else 400


def _printable(text: str) -> str:
    return "".join(one for one in text[:200] if " " < one < "\x7f")


def _codec(encoding: str) -> str:
    if encoding == "identity":
        return ""
    if encoding not in ENCODINGS:
        raise Refusal(NOT_IMPLEMENTED, f"Content-Encoding `{_printable(encoding)}` is not served, but {', '.join(ENCODINGS)}")
    return ENCODINGS[encoding]


async def _receive(http: web.Request, body: Memory) -> dict[str, str]:
    """Take the body into `body`; of a form, return the fields instead. Raises Refusal."""
    if http.query.get("compress") == "1" or http.query.get("decompress") == "1":
        raise Refusal(NOT_IMPLEMENTED, "native block compression is not served, but Accept-Encoding and Content-Encoding")
    if http.content_type != "multipart/form-data":
        async for chunk in http.content.iter_any():
            body.add(chunk)
        return {}
    fields: dict[str, str] = {}
    async for part in await http.multipart():
        if not isinstance(part, BodyPartReader) or part.name is None or part.filename is not None:
            raise Refusal(NOT_IMPLEMENTED, "external tables are not served")
        data = bytearray()
        while chunk := await part.read_chunk():
            data += chunk
            if len(data) > QUERY_BYTES_MAX:
                raise Refusal(TOO_LARGE, f"form field `{_printable(part.name)}` has more than {QUERY_BYTES_MAX} bytes")
        fields[part.name] = data.decode(errors="replace")
    return fields
