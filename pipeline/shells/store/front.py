"""ClickHouse's HTTP protocol in front of the engine.

    request -> user -> body to a memory file -> guard -> engine (insert: the data stays in the file) -> answer, encoded as asked

What a server does with `query`, `database`, `default_format`, `param_NAME`, settings as query parameters, encodings and the
X-ClickHouse headers is done here the same way; what is not served (sessions, external tables, native block compression) is
refused by name.
"""

import asyncio
import json
import logging
import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import pyarrow as pa
from aiohttp import web
from prometheus_client import Counter, Gauge, Histogram

from pipeline.shells.store.engine import Answer, Ask, Engine, EngineError
from pipeline.shells.store.guard import Guard, Refusal, Statement
from pipeline.shells.store.users import Users
from schemas.store import quote_text

log = logging.getLogger(__name__)

QUERY_BYTES_MAX: Final = 1 << 20
"""Bytes of one query's text, an INSERT's text up to its data included."""

BODY_BYTES_MAX: Final = 1 << 30
"""Bytes of one request's body, as sent and once more as unpacked."""

COMPRESS_FROM_BYTES: Final = 1024

TRANSPORT: Final = frozenset({"query", "user", "password", "database", "default_format", "session_id", "session_timeout",
                              "session_check", "query_id", "quota_key", "compress", "decompress", "buffer_size",
                              "wait_end_of_query", "client_protocol_version", "role", "stacktrace", "readonly"})  # fmt: skip
"""Query parameters that are no settings."""

CONTENT_TYPES: Final[Mapping[str, str]] = {
    "TabSeparated": "text/tab-separated-values; charset=UTF-8", "TSV": "text/tab-separated-values; charset=UTF-8",
    "CSV": "text/csv; charset=UTF-8; header=absent", "CSVWithNames": "text/csv; charset=UTF-8; header=present",
    "JSON": "application/json; charset=UTF-8", "JSONCompact": "application/json; charset=UTF-8",
    "JSONEachRow": "application/x-ndjson; charset=UTF-8", "Native": "application/octet-stream",
    "ArrowStream": "application/octet-stream", "Arrow": "application/octet-stream", "Parquet": "application/octet-stream",
    "RowBinary": "application/octet-stream", "RowBinaryWithNamesAndTypes": "application/octet-stream",
}  # fmt: skip
ENCODINGS: Final = {"zstd": "zstd", "lz4": "lz4", "gzip": "gzip", "br": "brotli"}

NOT_FOUND: Final = frozenset({46, 47, 60, 81, 115})
TROUBLE: Final = frozenset({49, 74, 75, 76, 159, 209, 210, 225, 236, 241, 242, 243, 252, 319, 373, 1000, 1001, 1002})
"""Codes that say "the store is in trouble" (500). All others blame the query (4xx)."""

REQUESTS = Counter("wardline_store_requests", "Requests", ["user", "kind", "status"])
REFUSED = Counter("wardline_store_refused", "Requests that the front refused", ["code"])
INSERTED = Counter("wardline_store_inserted_rows", "Rows inserted")
RECEIVED = Counter("wardline_store_received_bytes", "Bytes of request bodies, unpacked")
SECONDS = Histogram("wardline_store_seconds", "Seconds in the engine", ["kind"])
WAITING = Gauge("wardline_store_reading", "Reads that are queued or running")


class Memory:
    """Bytes in an unnamed file: in memory, or on TMPDIR where the kernel has no memory files. Gone when closed, or with us."""

    def __init__(self) -> None:
        try:
            self.handle = os.memfd_create("wardline-store", os.MFD_CLOEXEC)
        except OSError:
            with tempfile.TemporaryFile() as file:
                self.handle = os.dup(file.fileno())
        self.size = 0

    @property
    def path(self) -> str:
        """A name under which this process can open it."""
        return f"/proc/self/fd/{self.handle}"

    def add(self, data: bytes | memoryview) -> None:
        """Append; raises Refusal at BODY_BYTES_MAX or when there is no room."""
        self.size += len(data)
        if self.size > BODY_BYTES_MAX:
            raise Refusal(161, "TOO_LARGE_BODY", f"the body has more than {BODY_BYTES_MAX} bytes", status=413)
        try:
            while data:
                data = memoryview(data)[os.write(self.handle, data) :]
        except OSError as fault:
            raise Refusal(243, "NOT_ENOUGH_SPACE", f"no room for the body: {fault.strerror}", status=507) from None

    def head(self, size: int) -> bytes:
        """The first bytes."""
        return os.pread(self.handle, size, 0)

    def unpacked(self, codec: str) -> "Memory":
        """A new one with the content of this one, which is closed."""
        made = Memory()
        try:
            with pa.CompressedInputStream(pa.OSFile(self.path), codec) as stream:
                while chunk := stream.read(1 << 20):
                    made.add(chunk)
        except (OSError, pa.ArrowInvalid):
            made.close()
            raise Refusal(354, "CANNOT_DECOMPRESS", "the body is not what its Content-Encoding says", status=400) from None
        except Refusal:
            made.close()
            raise
        self.close()
        return made

    @classmethod
    def none(cls) -> "Memory":
        """One that holds nothing and is closed."""
        made = cls.__new__(cls)
        made.handle, made.size = -1, 0
        return made

    def behind(self, early: bytes) -> "Memory":
        """A new one with `early` before the content of this one, which is closed."""
        made = Memory()
        made.add(early)
        made._take(self, 0)
        return made

    def rest(self, start: int) -> "Memory":
        """A new one with the bytes from `start`, this one is closed; itself when `start` is 0."""
        if start == 0:
            return self
        made = Memory()
        made._take(self, start)
        return made

    def _take(self, other: "Memory", start: int) -> None:
        self.size += other.size - start
        while start < other.size:
            start += os.sendfile(self.handle, other.handle, start, other.size - start)
        other.close()

    def close(self) -> None:
        """Forget the bytes. May be called twice."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1


class Front:
    """The HTTP application."""

    def __init__(self, engine: Engine, users: Users, guard: Guard) -> None:
        self._engine = engine
        self._users = users
        self._guard = guard

    def app(self) -> web.Application:
        """Routes: everything is `/`, as on a server."""
        app = web.Application()
        app.router.add_route("*", "/ping", self._ping)
        app.router.add_route("*", "/replicas_status", self._ping)
        app.router.add_route("*", "/{anything:.*}", self._handle)
        return app

    async def _ping(self, _: web.Request) -> web.Response:
        return web.Response(text="Ok.\n")

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        query_id = request.query.get("query_id") or secrets.token_hex(16)
        user, kind = "", "refused"
        try:
            if request.method not in ("GET", "HEAD", "POST"):
                raise Refusal(3, "UNEXPECTED_HTTP_METHOD", f"method `{request.method[:16]}` is not served", status=405)
            user = self._users.check(request.headers, request.query)
            kind, response = await self._answer(request, user, query_id)
        except Refusal as refusal:
            REFUSED.labels(refusal.code).inc()
            response = self._error(refusal.code, refusal.name, str(refusal), refusal.status)
        except EngineError as fault:
            status = 503 if fault.code == 202 else 404 if fault.code in NOT_FOUND else 500 if fault.code in TROUBLE else 400
            response = self._error(fault.code, fault.name, str(fault), 403 if fault.code in (164, 497) else status)
        response.headers["X-ClickHouse-Query-Id"] = query_id
        response.headers["X-ClickHouse-Server-Display-Name"] = "wardline"
        response.headers["X-ClickHouse-Timezone"] = self._engine.timezone
        REQUESTS.labels(user, kind, response.status).inc()
        WAITING.set(self._engine.waiting)
        return response

    def _error(self, code: int, name: str, message: str, status: int) -> web.Response:
        text = f"Code: {code}. DB::Exception: {message.rstrip('.')}. ({name}) (version {self._engine.version})\n"
        response = web.Response(text=text, status=status)
        response.headers["X-ClickHouse-Exception-Code"] = str(code)
        if status == 401:
            response.headers["WWW-Authenticate"] = 'Basic realm="ClickHouse server HTTP API"'
        return response

    async def _answer(self, request: web.Request, user: str, query_id: str) -> tuple[str, web.Response]:
        given = dict(request.query)
        body = Memory()
        try:
            fields = await self._receive(request, body)
            if "Content-Encoding" in request.headers and request.headers["Content-Encoding"] != "identity":
                codec = ENCODINGS.get(request.headers["Content-Encoding"].lower())
                if codec is None:
                    raise Refusal(48, "NOT_IMPLEMENTED", "this Content-Encoding is not served, served are gzip, zstd, lz4, br", 400)
                body = await asyncio.to_thread(body.unpacked, codec)
            RECEIVED.inc(body.size)
            given |= fields
            if given.get("compress") == "1" or given.get("decompress") == "1":
                raise Refusal(48, "NOT_IMPLEMENTED", "native compression is not served, use Accept-Encoding", 400)
            text = given.get("query", "").encode()
            if not text and not body.size:
                return "hello", web.Response(text="Ok.\n")
            text += b"\n" if text else b""
            before = len(text)
            text += body.head(QUERY_BYTES_MAX + 1 - before)
            whole = len(text) == before + body.size
            writer = self._users.writes(user)
            statement = self._guard.analyse(text, writer=writer, whole=whole)
            if statement.data_at is None and not whole:
                raise Refusal(62, "SYNTAX_ERROR", f"the query has more than {QUERY_BYTES_MAX} bytes", status=413)
            ask = self._ask(request, given, statement, query_id)
            if statement.reads:
                return "read", await self._read(request, replace(ask, sql=text.decode()), own=writer)
            if request.method != "POST" or "readonly" in given:
                raise Refusal(164, "READONLY", "only POST may write")
            body, sql = _placed(text, before, statement, body)
            body, data = Memory.none(), body
            return "write", await self._write(replace(ask, sql=sql, level=0), data)
        finally:
            body.close()

    async def _receive(self, request: web.Request, body: Memory) -> dict[str, str]:
        """Take the body into `body`; a form's fields are returned instead."""
        if request.content_type == "multipart/form-data":
            fields: dict[str, str] = {}
            async for part in await request.multipart():
                if not hasattr(part, "name") or part.name is None or part.filename is not None:
                    raise Refusal(48, "NOT_IMPLEMENTED", "external tables are not served", status=400)
                data = await part.read(decode=True)
                if len(data) > QUERY_BYTES_MAX:
                    raise Refusal(161, "TOO_LARGE_BODY", f"form field `{part.name}` has more than {QUERY_BYTES_MAX} bytes", 413)
                fields[part.name] = data.decode()
            return fields
        async for chunk in request.content.iter_any():
            body.add(chunk)
        return {}

    def _ask(self, request: web.Request, given: Mapping[str, str], statement: Statement, query_id: str) -> Ask:
        params = {name.removeprefix("param_"): value for name, value in given.items() if name.startswith("param_")}
        settings = []
        for name, value in given.items():
            if name in TRANSPORT or name.startswith("param_"):
                continue
            self._guard.setting(name)
            self._guard.cap(name, value)
            settings.append((name, value))
        output = statement.output or given.get("default_format") or request.headers.get("X-ClickHouse-Format") or "TabSeparated"
        return Ask(
            sql="", output=output, tag=f"{query_id}-{secrets.token_hex(4)}", level=2 if statement.settings else 1,
            database=given.get("database") or request.headers.get("X-ClickHouse-Database") or "",
            settings=tuple(settings), params=params,
        )  # fmt: skip

    async def _read(self, request: web.Request, ask: Ask, *, own: bool) -> web.Response:
        answer = await self._engine.read(ask, own=own)
        SECONDS.labels("read").observe(answer.seconds)
        return await self._respond(request, ask, answer)

    async def _write(self, ask: Ask, data: Memory) -> web.Response:
        # the data is closed behind the insert and not here: a client that leaves does not end it
        answer = await asyncio.shield(self._engine.write(ask, data.close))
        SECONDS.labels("write").observe(answer.seconds)
        INSERTED.inc(answer.summary["written_rows"])
        response = web.Response(body=bytes(answer.view))
        response.headers["X-ClickHouse-Summary"] = _summary(answer)
        return response

    async def _respond(self, request: web.Request, ask: Ask, answer: Answer) -> web.Response:
        accepted = [part.partition(";")[0].strip().lower() for part in request.headers.get("Accept-Encoding", "").split(",")]
        encoding = next((name for name in ENCODINGS if name in accepted), None)
        if encoding is None or len(answer.view) < COMPRESS_FROM_BYTES or request.query.get("enable_http_compression") == "0":
            data, encoding = bytes(answer.view), None
        else:
            codec = pa.Codec(ENCODINGS[encoding])
            data = await asyncio.to_thread(lambda: codec.compress(pa.py_buffer(answer.view), asbytes=True))
        response = web.Response(body=data)
        response.headers["Content-Type"] = CONTENT_TYPES.get(ask.output, "text/plain; charset=UTF-8")
        response.headers["X-ClickHouse-Format"] = ask.output
        response.headers["X-ClickHouse-Summary"] = _summary(answer)
        if encoding is not None:
            response.headers["Content-Encoding"] = encoding
        return response


def _summary(answer: Answer) -> str:
    return json.dumps({name: str(value) for name, value in answer.summary.items()})


def _placed(text: bytes, before: int, statement: Statement, body: Memory) -> tuple[Memory, str]:
    """The data of a write alone in a file, and the statement that reads it from there."""
    if statement.data_at is None:
        return body, text.decode()
    if statement.data_at >= before:
        data = body.rest(statement.data_at - before)
    else:  # it begins in the query parameter
        data = body.behind(text[statement.data_at : before])
    try:
        return data, _rewritten(text, statement, data.path)
    except UnicodeDecodeError:
        data.close()
        raise Refusal(62, "SYNTAX_ERROR", "the query is not UTF-8", status=400) from None


def _rewritten(text: bytes, statement: Statement, path: str) -> str:
    if statement.source is not None:
        start, end = statement.source
        source = f"file({quote_text(path)}, {quote_text(statement.body_format)}, {quote_text(statement.source_text)})"
        return text[:start].decode() + source + text[end : statement.format_at].decode()
    middle = f" FROM INFILE {quote_text(path)} "
    return f"{text[: statement.cut].decode()}{middle}{text[statement.cut : statement.format_at].decode()} FORMAT {statement.body_format}"
