"""Web sites for tests: one server behind many names, over HTTP and TLS, that keeps what it was asked.

    with Origins(folder) as origins:
        origins.http, origins.https      "ADDRESS:PORT" of each; 443 where this process may listen there
        origins.seen                     every request that came, in order

It runs on a loop and a thread of its own. Besides what it makes up (`/echo`, `/bytes/N`, `/sink`, `/hold`, `/ws`) it serves the
files under `folder/www`, and the git repositories under `folder/git` as `git http-backend` does.
"""

import asyncio
import hashlib
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from aiohttp import WSMsgType, web

from tests.support.certificates import Authority

ADDRESS: Final = f"127.9.{os.getpid() >> 8 & 255}.{os.getpid() & 255 or 1}"
"""A loopback address of this test process alone, so that each has a port 443: a rule may name it and nothing of Wardline's."""

BLOCK: Final = b"".join(hashlib.sha256(n.to_bytes(4, "big")).digest() for n in range(1 << 11))
"""64 KiB that no compressor makes smaller; what `/bytes/N` repeats."""


@dataclass(frozen=True)
class Seen:
    """One request, as it reached the origin."""

    method: str
    host: str
    path: str
    headers: tuple[tuple[str, str], ...]

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]


def digest_of_bytes(count: int) -> str:
    """SHA-256 of what `/bytes/COUNT` sends."""
    found = hashlib.sha256()
    for _ in range(count // len(BLOCK)):
        found.update(BLOCK)
    found.update(BLOCK[: count % len(BLOCK)])
    return found.hexdigest()


class Origins:
    """See the module. `names` are what its certificate is for."""

    def __init__(self, folder: Path, *names: str, http_port: int = 0, https_port: int = 0) -> None:
        self.folder = folder
        self.seen: list[Seen] = []
        self.held = 0
        """Requests that wait at `/hold` now."""
        self.http = self.https = ""
        self.authority = Authority(folder / "certificates")
        self._names = names
        self._ports = (http_port, https_port)
        self._ready = threading.Event()
        self._fault: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._go: asyncio.Event
        self._stop: asyncio.Event
        self._thread = threading.Thread(target=self._run, name="origins", daemon=True)
        (folder / "www").mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Origins":
        self._thread.start()
        self._ready.wait(20)
        if self._fault is not None:
            raise self._fault
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)

    def release(self) -> None:
        """Answer what waits at `/hold`, and whatever comes there from now on."""
        self._loop.call_soon_threadsafe(self._go.set)

    def hold(self) -> None:
        """Have what comes to `/hold` wait again."""
        self._loop.call_soon_threadsafe(self._go.clear)

    # -- in its thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        except BaseException as fault:
            self._fault = fault
            self._ready.set()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    async def _main(self) -> None:
        self._go, self._stop = asyncio.Event(), asyncio.Event()
        app = web.Application(client_max_size=1 << 31, middlewares=[self._note])
        app.router.add_route("*", "/echo", self._echo)
        app.router.add_route("*", "/echo/{what}", self._echo)
        app.router.add_get("/bytes/{count}", self._bytes)
        app.router.add_route("*", "/sink", self._sink)
        app.router.add_route("*", "/hold", self._hold)
        app.router.add_get("/ws", self._ws)
        app.router.add_route("*", "/git/{path:.*}", self._git)
        app.router.add_get("/{path:.*}", self._file)
        runner = web.AppRunner(app, access_log=None, keepalive_timeout=60)
        await runner.setup()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.authority.issue("origin", *self._names))
        plain, secure = listening(self._ports[0]), listening(self._ports[1])
        await web.SockSite(runner, plain, backlog=4096).start()
        await web.SockSite(runner, secure, ssl_context=context, backlog=4096).start()
        self.http, self.https = (f"{ADDRESS}:{one.getsockname()[1]}" for one in (plain, secure))
        self._ready.set()
        await self._stop.wait()
        self._go.set()
        await runner.cleanup()

    @web.middleware
    async def _note(self, request: web.Request, handler: Any) -> web.StreamResponse:
        headers = tuple((key.decode(), value.decode("latin-1")) for key, value in request.raw_headers)
        self.seen.append(Seen(request.method, request.host, request.path_qs, headers))
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _echo(self, request: web.Request) -> web.Response:
        return web.Response(body=await request.read(), headers={"x-method": request.method})

    async def _bytes(self, request: web.Request) -> web.StreamResponse:
        count = int(request.match_info["count"])
        answer = web.StreamResponse(headers={"content-length": str(count)})
        await answer.prepare(request)
        while count:
            part = BLOCK[: min(count, len(BLOCK))]
            await answer.write(part)
            count -= len(part)
        await answer.write_eof()
        return answer

    async def _sink(self, request: web.Request) -> web.Response:
        size, found = 0, hashlib.sha256()
        async for part in request.content.iter_chunked(1 << 18):
            size += len(part)
            found.update(part)
        return web.json_response({"bytes": size, "sha256": found.hexdigest()})

    async def _hold(self, request: web.Request) -> web.Response:
        self.held += 1
        try:
            await self._go.wait()
        finally:
            self.held -= 1
        return web.Response(text="held\n")

    async def _ws(self, request: web.Request) -> web.WebSocketResponse:
        socket_ = web.WebSocketResponse(max_msg_size=1 << 26)
        await socket_.prepare(request)
        async for message in socket_:
            if message.type is WSMsgType.TEXT:
                await socket_.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await socket_.send_bytes(message.data)
        return socket_

    async def _file(self, request: web.Request) -> web.StreamResponse:
        path = (self.folder / "www" / request.match_info["path"]).resolve()
        if path.is_dir():
            path /= "index.html"
        if not path.is_relative_to((self.folder / "www").resolve()) or not path.is_file():
            raise web.HTTPNotFound
        return web.Response(body=path.read_bytes(), content_type=_kind(path))

    async def _git(self, request: web.Request) -> web.Response:
        """CGI, as RFC 3875 has it, with the program that git brings for it."""
        environ = {
            "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(self.folder / "git"), "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": request.method, "PATH_INFO": f"/{request.match_info['path']}",
            "QUERY_STRING": request.query_string, "CONTENT_TYPE": request.headers.get("content-type", ""),
            "REMOTE_ADDR": "127.0.0.1", "GIT_CONFIG_NOSYSTEM": "1", "HOME": str(self.folder),
            "GIT_PROTOCOL": request.headers.get("git-protocol", ""),
        }  # fmt: skip
        program = await asyncio.create_subprocess_exec(
            "git", "-c", "safe.directory=*", "http-backend", env=environ, stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await program.communicate(await request.read())  # aiohttp has undone a gzip already
        head, _, body = out.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        status = int(fields.pop("Status", "200").split()[0])
        return web.Response(status=status, body=body, headers=fields)


def _kind(path: Path) -> str:
    return {".html": "text/html", ".json": "application/json"}.get(path.suffix, "application/octet-stream")


def listening(port: int) -> socket.socket:
    """A socket at ADDRESS, at a port that may need root; a free one where it does, or another test has it at the moment."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((ADDRESS, port))
    except OSError:
        made.bind((ADDRESS, 0))
    return made


async def sent(count: int) -> AsyncIterator[bytes]:
    """A body of so many bytes, the same as `/bytes/COUNT`."""
    while count:
        part = BLOCK[: min(count, len(BLOCK))]
        yield part
        count -= len(part)
