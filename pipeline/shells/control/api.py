"""The API: JSON over HTTP, on a unix socket for this user alone, and over TCP with TLS for who has a client certificate.

    POST /changes           make a change, once for each id        GET /audit?after=&limit=&key=   what was changed, by whom
    GET  /changes/ID        what a request made                    GET /acks?epoch=&policy=&wait_s=   who has applied it
    GET  /live?kind=&after=&limit=   what is live                  GET /policy                  sets, and what is wrong
    GET  /status            how control is

Who asks is known by the socket's peer credentials or the certificate's common name, and stands in each entry as its actor.
"""

import asyncio
import json
import logging
import os
import pwd
import re
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import web
from prometheus_client import Counter

from pipeline.core.control import Already
from pipeline.core.requests import INTERNAL
from pipeline.core.standing import entry_of
from pipeline.shells.control.books import Books, Broken, Conflict, Void
from pipeline.shells.control.heard import Heard
from pipeline.shells.control.watch import Watch, facts_of
from schemas.control import Entry
from schemas.errors import OperatorFault, PeerFault
from schemas.vocabulary import shown

log = logging.getLogger(__name__)

BODY_BYTES_MAX: Final = 32 << 20
"""Bytes of one request: 10,000 revocations with reasons of the greatest length."""

PAGE_MAX: Final = 10_000
"""Entries in one answer."""

WAIT_S_MAX: Final = 600
ACTOR_MAX: Final = 200

REQUESTS = Counter("wardline_control_requests", "Requests", ["path", "status"])

_ID: Final = re.compile(r"[0-9A-Za-z_-]{16,64}")
_CREDENTIALS: Final = struct.Struct("3i")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Change = Callable[[Mapping[str, Any], str, str], Awaitable[dict[str, Any]]]


class Api:
    """The HTTP application. `make` makes a change of a checked request: (request, actor, id)."""

    def __init__(self, books: Books, heard: Heard, watch: Watch, make: Change, status: Callable[[], dict[str, Any]]) -> None:
        self._books = books
        self._heard = heard
        self._watch = watch
        self._make = make
        self._status = status

    def app(self) -> web.Application:
        """The routes. Nobody is served before it is known who asks."""
        app = web.Application(middlewares=[self._guard], client_max_size=BODY_BYTES_MAX)
        app.router.add_post("/changes", self._post)
        app.router.add_get("/changes/{id}", self._answer)
        app.router.add_get("/live", self._live)
        app.router.add_get("/audit", self._audit)
        app.router.add_get("/acks", self._acks)
        app.router.add_get("/policy", self._policy)
        app.router.add_get("/status", self._say)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        route = request.match_info.route.resource
        path = route.canonical if route is not None else "other"
        try:
            request["actor"] = actor_of(request)
            answer = await handler(request)
        except Broken:
            # no answer: who asked asks again for what became of it, when the next start knows
            if request.transport is not None:
                request.transport.abort()
            answer = _fault(500, "control ends")
        except PermissionError as fault:
            log.warning("a request is refused: %s", fault)
            answer = _fault(403, str(fault))
        except Void as fault:
            answer = _fault(410, str(fault))
        except Conflict as fault:
            answer = _fault(409, str(fault))
        except Already as fault:
            answer = _fault(412, str(fault))
        except OperatorFault as fault:
            answer = _fault(400, str(fault))
        except PeerFault as fault:
            answer = _fault(503, str(fault))
        except web.HTTPException as fault:
            answer = _fault(fault.status, (fault.reason or "refused").lower())
        REQUESTS.labels(path, str(answer.status)).inc()
        return answer

    async def _post(self, http: web.Request) -> web.Response:
        body = await _body(http)
        request_id = body.pop("id", None)
        if not isinstance(request_id, str) or not _ID.fullmatch(request_id):
            raise OperatorFault("`id` is not 16 to 64 letters, digits, `_` and `-`, made anew for each request")
        if body.get("do") in INTERNAL:
            raise OperatorFault(f"`{body['do']}` is what control does by itself")
        # once it is begun it is finished, whether or not somebody still waits for the answer
        return web.json_response(await asyncio.shield(self._make(body, http["actor"], request_id)))

    async def _answer(self, http: web.Request) -> web.Response:
        request_id = http.match_info["id"]
        known = await self._books.answer(request_id) if _ID.fullmatch(request_id) else None
        if known is None:
            return _fault(404, f"request `{shown(request_id)}` was not made, and will not be")
        return web.json_response(said(known.first, known.last, known.result))

    async def _live(self, http: web.Request) -> web.Response:
        kind, limit = http.query.get("kind", ""), _whole(http, "limit", PAGE_MAX, PAGE_MAX)
        entries = self._books.log.entries(kind, after=_whole(http, "after", 0, 1 << 62), limit=limit + 1)
        return web.json_response({
            "epoch": self._books.log.epoch, "live": self._books.log.live, "more": len(entries) > limit,
            "entries": [facts(entry) for entry in entries[:limit]],
        })  # fmt: skip

    async def _audit(self, http: web.Request) -> web.Response:
        limit = _whole(http, "limit", PAGE_MAX, PAGE_MAX)
        rows = await self._books.after(_whole(http, "after", 0, 1 << 62), limit + 1, http.query.get("key", ""))
        entries = [facts(entry_of(payload)) for _, payload in rows[:limit]]
        return web.json_response({"epoch": self._books.log.epoch, "more": len(rows) > limit, "entries": entries})

    async def _acks(self, http: web.Request) -> web.Response:
        epoch, wait_s = _whole(http, "epoch", 0, 1 << 62), _number(http, "wait_s")
        hosts = await self._heard.applied(epoch, http.query.get("policy", ""), wait_s)
        return web.json_response({"epoch": epoch, "hosts": hosts})

    async def _policy(self, _http: web.Request) -> web.Response:
        known = self._books.log
        now, before = known.policy, known.previous
        return web.json_response({
            "digest": now.digest if now else "", "previous": before.digest if before else "",
            "epoch": now.epoch if now else 0, "problem": facts_of(self._watch.problem),
            "sets": [{"epoch": one.epoch, "time_ns": one.time_ns, **one.value} for one in known.policies],
        })  # fmt: skip

    async def _say(self, _http: web.Request) -> web.Response:
        return web.json_response(self._status())


def actor_of(request: web.Request) -> str:
    """Who asks. Raises PermissionError for another user of this machine."""
    transport = request.transport
    if transport is None:
        raise PermissionError("the peer is gone")
    cert = transport.get_extra_info("peercert")
    if cert:
        names = [value for part in cert.get("subject", ()) for name, value in part if name == "commonName"]
        return f"cn:{shown(names[0] if names else 'without a name')}"[:ACTOR_MAX]
    peer = transport.get_extra_info("socket")
    if peer is None or peer.family != socket.AF_UNIX:
        raise PermissionError("the peer has no certificate")
    _, uid, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if uid != os.geteuid():
        raise PermissionError(f"user id {uid} is not the user of this control ({os.geteuid()})")
    try:
        return f"uid:{pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"uid:{uid}"


def said(first: int, last: int, result: Mapping[str, Any]) -> dict[str, Any]:
    """What a change made, as it is answered: `epochs` are the first and the last."""
    return {"epoch": last, "epochs": [first, last], "result": dict(result)}


def facts(entry: Entry) -> dict[str, Any]:
    """An entry for who may read the log; the hash of a credential is nobody's business."""
    value = None if entry.value is None else {name: one for name, one in entry.value.items() if name != "secret"}
    return {"epoch": entry.epoch, "key": entry.key, "time_ns": entry.time_ns, "actor": entry.actor, "value": value}


def _fault(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


async def _body(http: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await http.read())
    except (ValueError, RecursionError) as fault:
        raise OperatorFault("the request is not json") from fault
    if not isinstance(body, dict):
        raise OperatorFault("the request is not an object")
    return body


def _whole(http: web.Request, name: str, default: int, limit: int) -> int:
    given = http.query.get(name, str(default))
    if not given.isascii() or not given.isdigit() or int(given) > limit:
        raise OperatorFault(f"{name}: `{shown(given)}` is not a whole number from 0 to {limit}")
    return int(given)


def _number(http: web.Request, name: str) -> float:
    given = http.query.get(name, "0")
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", given) or float(given) > WAIT_S_MAX:
        raise OperatorFault(f"{name}: `{shown(given)}` is not a number of seconds from 0 to {WAIT_S_MAX}")
    return float(given)
