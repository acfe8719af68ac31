"""Splunk's HTTP Event Collector: one packed request a batch, and with `ack` the wait until the indexer has it.

    200, code 0               taken; with `ack`, once `/services/collector/ack` says so
    503, 429, 5xx, no answer  later: Splunk is busy, stops, or is away
    400, 401, 403, other 4xx  somebody must act (the token, the index, the channel): named, tried again, never skipped

At least once: an answer that was lost, or an acknowledgement that did not come, and the batch is sent again. `fields.uid` is
the same then.
"""

import asyncio
import json
import re
import socket
import uuid
from pathlib import Path
from typing import Any, Final

import aiohttp

from pipeline.core.ocsf import Alert, fitted
from pipeline.core.siem.feeder import Batch
from pipeline.core.siem.framing import hec_body
from pipeline.shells.siem.sinks.tls import context_of
from schemas.config import Siem
from schemas.errors import OperatorFault, PeerFault, WardlineError
from schemas.links import read_secret
from schemas.siem import host_of

CONNECT_S: Final = 5.0
ANSWER_S: Final = 30.0
ANSWER_BYTES_MAX: Final = 64 << 10
ACK_POLL_S: Final = 1.0
ACK_POLL_MAX_S: Final = 10.0
ACK_S: Final = 300.0
"""How long an acknowledgement may take; then the batch is sent again."""

_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,256}")

_WHO: Final = {
    1: "turn the token on there", 2: "put the token into {token}", 3: "put the token into {token}",
    4: "put a valid token into {token}", 7: "the token must allow the index; name one that it does in siem.index",
    10: "the token wants acknowledgements; turn siem.ack on", 11: "the token wants acknowledgements; turn siem.ack on",
    14: "the token has no acknowledgements; turn siem.ack off", 21: "put a valid token into {token}",
    22: "turn the token on there",
}  # fmt: skip
"""What Splunk's code means for whoever must act ("Troubleshoot HTTP Event Collector", possible error codes)."""


class SplunkSink:
    """One collector and one token."""

    def __init__(self, table: Siem) -> None:
        """Raises OperatorFault for a certificate or a token file that is not as it must be."""
        host, port, tls = host_of(table)
        named = f"[{host}]" if ":" in host else host
        self.where = f"{'https' if tls else 'http'}://{named}:{port}"
        self._token_file = Path(table.token_file)
        self._index = table.index
        self._ack = table.ack
        self._context = context_of(table) if tls else None
        self._channel = str(uuid.uuid4())
        self._host = socket.gethostname()
        self._session: aiohttp.ClientSession | None = None
        self._token()

    def pack(self, alert: Alert) -> bytes:
        """As large as any event may be."""
        return fitted(alert)

    def _token(self) -> str:
        """Read anew for each request, so that a new token needs no restart."""
        if not self._token_file.exists():
            raise OperatorFault(f"siem.token_file: `{self._token_file}` is missing")
        token = read_secret(self._token_file).strip()
        if not _TOKEN.fullmatch(token):
            raise OperatorFault(f"{self._token_file}: is no token: 1 to 256 visible ASCII characters in one line")
        return token

    async def take(self, batch: Batch) -> str:
        """Post a batch; returns Splunk's answer in words. Raises PeerFault and OperatorFault."""
        body = hec_body(batch.alerts, batch.events, host=self._host, index=self._index)
        status, said = await self._post("/services/collector/event", body, {"Content-Encoding": "gzip"})
        code = said.get("code")
        if status != 200 or code not in (0, None):
            raise self._refused(status, said)
        words = f"{status} {said.get('text', '')} (code {code})"
        if not self._ack:
            return words
        number = said.get("ackId")
        if not isinstance(number, int):
            raise OperatorFault(f"{self.where} gives no acknowledgements to this token; turn siem.ack off, or them on")
        await self._acknowledged(number)
        return f"{words}, acknowledged as {number}"

    async def _acknowledged(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + ACK_S, ACK_POLL_S
        while loop.time() < deadline:
            status, said = await self._post("/services/collector/ack", json.dumps({"acks": [number]}).encode(), {})
            if status != 200:
                raise self._refused(status, said)
            acks = said.get("acks")
            if isinstance(acks, dict) and acks.get(str(number)) is True:
                return
            await asyncio.sleep(pause)
            pause = min(ACK_POLL_MAX_S, 2 * pause)
        raise PeerFault(f"{self.where} has not acknowledged a batch in {ACK_S:.0f} s")

    async def _post(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
        if self._session is None:
            limits = aiohttp.ClientTimeout(total=ANSWER_S, sock_connect=CONNECT_S)
            self._session = aiohttp.ClientSession(timeout=limits, trust_env=False)
        sent = {"Authorization": f"Splunk {self._token()}", "Content-Type": "application/json", **headers}
        if self._ack:
            sent["X-Splunk-Request-Channel"] = self._channel
        try:
            async with self._session.post(
                self.where + path, data=body, headers=sent, ssl=self._context or True, allow_redirects=False
            ) as answer:
                text = (await answer.content.read(ANSWER_BYTES_MAX)).decode(errors="replace")
                status = answer.status
        except aiohttp.ClientConnectorCertificateError as fault:
            raise OperatorFault(f"{self.where}: its certificate is not accepted: {_line(fault.certificate_error)}") from fault
        except (aiohttp.ClientError, TimeoutError, OSError) as fault:
            await self.close()
            raise PeerFault(f"{self.where} does not answer: {_line(fault)}") from fault
        try:
            said = json.loads(text)
        except ValueError:
            said = {}
        return status, said if isinstance(said, dict) else {}

    def _refused(self, status: int, said: dict[str, Any]) -> WardlineError:
        code = said.get("code")
        words = f"{self.where} answers {status}" + (f" code {code} ({_line(said.get('text', ''))})" if code is not None else "")
        if status in (408, 429) or status >= 500 or code in (8, 9):
            return PeerFault(f"{words}: it is busy or stops")
        who = _WHO.get(code, "somebody must look at it there") if isinstance(code, int) else "is this a Splunk collector?"
        return OperatorFault(f"{words}: {who.format(token=self._token_file)}")

    async def close(self) -> None:
        """Let the connections go."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def _line(fault: object) -> str:
    return (" ".join(str(fault).split()) or type(fault).__name__)[:200]
