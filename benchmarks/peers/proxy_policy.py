"""proxy.py's add-on, which runs in it: hosts not on the list get 403, and each answered request is a line of JSON."""

import json
import os
import time
from typing import Any

from proxy.http.exception import HttpRequestRejected  # type: ignore[import-not-found]
from proxy.http.proxy import HttpProxyBasePlugin  # type: ignore[import-not-found]

HOSTS = frozenset(os.environ["PEER_HOSTS"].split(","))
LOG = open(os.environ["PEER_LOG"], "a", buffering=1)  # noqa: SIM115


class Policy(HttpProxyBasePlugin):  # type: ignore[misc]
    """One connection of a client."""

    def before_upstream_connection(self, request: Any) -> Any:
        if f"{request.host.decode()}:{request.port}" not in HOSTS:
            raise HttpRequestRejected(status_code=403, reason=b"Forbidden")
        return request

    def handle_client_request(self, request: Any) -> Any:
        url = f"{request.host.decode()}:{request.port}{(request.path or b'').decode()}"
        self.said = {"method": request.method.decode(), "url": url}
        return request

    def handle_upstream_chunk(self, chunk: memoryview) -> memoryview:
        if said := getattr(self, "said", None):
            LOG.write(json.dumps({"time": time.time(), **said, "status": bytes(chunk[9:12]).decode()}) + "\n")
            self.said = None
        return chunk

    def on_access_log(self, context: dict[str, Any]) -> None:
        return None
