"""mitmproxy's add-on, which runs in it: hosts not on the list get 403, and each answered request is a line of JSON."""

import json
import os
import time

from mitmproxy import http  # type: ignore[import-not-found]

HOSTS = frozenset(os.environ["PEER_HOSTS"].split(","))
LOG = open(os.environ["PEER_LOG"], "a", buffering=1)  # noqa: SIM115


def _judge(flow: "http.HTTPFlow") -> None:
    if f"{flow.request.host}:{flow.request.port}" not in HOSTS:
        flow.response = http.Response.make(403, b"refused")


def request(flow: "http.HTTPFlow") -> None:
    _judge(flow)


def http_connect(flow: "http.HTTPFlow") -> None:
    _judge(flow)


def response(flow: "http.HTTPFlow") -> None:
    line = {"time": time.time(), "client": str(flow.client_conn.peername), "method": flow.request.method,
            "url": flow.request.url, "status": flow.response.status_code}  # fmt: skip
    LOG.write(json.dumps(line) + "\n")
