"""How commands and workers speak to control: one JSON question at a time, over the socket in this home, or over TLS.

A change carries an id of our own making. Where the connection breaks in the middle of one, control is asked about that id until
it answers, and the user is told which it is: in force as epoch N, not made, or unknown. Who can ask again for as long as it
takes (`change_once`) gives the id, and asks for the same change again.
"""

import contextlib
import http.client
import json
import os
import socket
import ssl
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from schemas.config import Config
from schemas.errors import OperatorFault, PeerFault
from schemas.home import Home
from schemas.keys import loose_mode

ANSWER_S: Final = 15.0
"""How long control may take for one answer, beside what the question itself asks it to wait."""

SETTLE_S: Final = 10.0
"""How long control is asked what became of a change after the connection broke."""

POLL_S: Final = 0.1
CONFLICT: Final = 409
"""The status of a change whose id was used for another one."""

ALREADY: Final = 412
"""The status of a revocation that may only be new (`only_new`), of what is revoked already."""

PAGE: Final = 1_000
"""Entries of one answer."""


class Unsettled(PeerFault):
    """The connection broke in the middle of a change, which was not made, or of which nobody knows. Exit code 1."""

    unsettled = True


class Refused(OperatorFault):
    """Control has answered, and does not do it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Cut(Exception):
    """The connection broke after the question had begun to go out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change that is in force: all its entries are in the journal."""

    epoch: int
    """Its last entry's: whoever has applied this has applied the whole change."""
    result: Mapping[str, Any]


class Control:
    """Control of one home, or the one that `control.url` names."""

    def __init__(self, home: Home, config: Config, *, answer_s: float = ANSWER_S) -> None:
        self._home = home
        self._config = config.control
        self._answer_s = answer_s
        self.where = self._config.url or f"control of `{home.root}`"

    # -- questions ---------------------------------------------------------------------------------------------------

    def ask(self, path: str, *, wait_s: float = 0.0, **parameters: Any) -> dict[str, Any]:
        """GET. `wait_s` is how long the question itself waits for something to happen.

        Raises PeerFault while control cannot be reached or is at a loss, Refused with its own words where it refuses.
        """
        if wait_s:
            parameters["wait_s"] = f"{wait_s:.3f}"
        query = f"?{urlencode(parameters)}" if parameters else ""
        try:
            status, answer = self._send("GET", path + query, None, self._answer_s + wait_s)
        except _Cut as fault:
            hint = "; does control take this certificate (control.client_certificate_file)" if self._config.url else ""
            raise PeerFault(f"{self.where}: {fault}{hint}") from fault
        return self._checked(status, answer)

    def change(self, do: str, **fields: Any) -> Change:
        """Have a change made. Raises as `ask`; Unsettled when the connection broke and it is not in force, or perhaps."""
        name = str(uuid.uuid4())
        if self._config.url:
            # a certificate that control does not take breaks the connection behind the question: not behind a change, please
            self.ask("/status")
        try:
            status, answer = self._send("POST", "/changes", {"id": name, "do": do, **fields}, self._answer_s)
        except _Cut as fault:
            return self._settle(name, str(fault))
        return _change(self._checked(status, answer))

    def change_once(self, change_id: str, do: str, /, **fields: Any) -> Change:
        """Have a change made, once, however often it is asked for under this id (16 to 64 letters, digits, `_` and `-`).

        A change that was made under the id before is answered as it was made, also when it had other fields. Raises as `ask`:
        behind a PeerFault it is made or not, and asking the same again settles it.
        """
        try:
            status, answer = self._send("POST", "/changes", {"id": change_id, "do": do, **fields}, self._answer_s)
            if status == CONFLICT:
                status, answer = self._send("GET", f"/changes/{quote(change_id)}", None, self._answer_s)
        except _Cut as fault:
            raise PeerFault(f"{self.where}: {fault}") from fault
        return _change(self._checked(status, answer))

    def _settle(self, name: str, why: str) -> Change:
        """Find out what became of a change. That it was not made is control's last word: it then refuses the id for ever."""
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline:
            try:
                status, answer = self._send("GET", f"/changes/{quote(name)}", None, max(0.1, deadline - time.monotonic()))
            except (_Cut, PeerFault):
                time.sleep(POLL_S)
                continue
            if status == 404:
                raise Unsettled(f"{self.where}: {why}; the change was not made")
            return _change(self._checked(status, answer))
        raise Unsettled(
            f"{self.where}: {why} and did not come back within {SETTLE_S:.0f} s; whether the change was made is unknown, "
            "`wardline audit control` says so once control is up"
        )

    def _checked(self, status: int, answer: dict[str, Any]) -> dict[str, Any]:
        if status == 200:
            return answer
        said = str(answer.get("error") or f"answered {status}")
        if 400 <= status < 500:
            raise Refused(said, status)
        raise PeerFault(f"{self.where}: {said}")

    def live(self, kind: str) -> list[dict[str, Any]]:
        """The live entries of a kind, in the order of their epochs: epoch, key, time_ns, actor, value."""
        found: list[dict[str, Any]] = []
        while True:
            part = self.ask("/live", kind=kind, after=found[-1]["epoch"] if found else 0)
            found += part["entries"]
            if not part["more"]:
                return found

    def audit(self, after: int, limit: int, key: str = "") -> list[dict[str, Any]]:
        """Entries of the journal behind an epoch, of one key where one is given; what was removed has the value None."""
        entries: list[dict[str, Any]] = self.ask("/audit", after=after, limit=limit, key=key)["entries"]
        return entries

    # -- one exchange ------------------------------------------------------------------------------------------------

    def _send(self, method: str, path: str, body: Any, timeout_s: float) -> tuple[int, dict[str, Any]]:
        """Raises PeerFault when nothing went out, _Cut when the connection broke behind that."""
        link = self._link(timeout_s)
        try:
            try:
                link.connect()
            except ssl.SSLError as fault:
                raise OperatorFault(f"{self.where}: {_tls(fault)}") from fault
            except PermissionError as fault:
                raise OperatorFault(f"{self.where} belongs to another user") from fault
            except OSError as fault:
                raise PeerFault(f"{self.where} is not up: {(fault.strerror or str(fault)).lower()}") from fault
            try:
                data = None if body is None else json.dumps(body)
                link.request(method, path, data, {"Content-Type": "application/json"} if data else {})
                answer = link.getresponse()
                text = answer.read()
            except TimeoutError as fault:
                raise _Cut(f"gave no answer within {timeout_s:.0f} s") from fault
            except (OSError, http.client.HTTPException) as fault:
                raise _Cut("the connection broke") from fault
        finally:
            link.close()
        try:
            said = json.loads(text)
        except ValueError:
            said = {}
        return answer.status, said if isinstance(said, dict) else {}

    def _link(self, timeout_s: float) -> http.client.HTTPConnection:
        own = self._config
        if not own.url:
            return _Unix(self._home.control_socket, timeout_s)
        host, port = _parts(own.url)
        for setting in ("client_certificate_file", "client_key_file"):
            if not getattr(own, setting):
                raise OperatorFault(f"control.{setting}: is not set, but control.url is `{own.url}`: control asks who calls")
        if wrong := loose_mode(Path(own.client_key_file)):
            raise OperatorFault(wrong)
        try:
            context = ssl.create_default_context(cafile=own.client_ca_file or None)
            context.load_cert_chain(own.client_certificate_file, own.client_key_file)
        except (OSError, ssl.SSLError) as fault:
            raise OperatorFault(f"control.client_*_file: cannot be loaded: {fault}") from fault
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)


class _Unix(http.client.HTTPConnection):
    """HTTP over a unix socket, whose path may be longer than the 107 bytes that an address holds."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("control", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        folder = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.settimeout(self._timeout_s)
            made.connect(f"/proc/self/fd/{folder}/{self._path.name}")
            self.sock = made
        except BaseException:
            with contextlib.suppress(OSError):
                made.close()
            raise
        finally:
            os.close(folder)


def _parts(url: str) -> tuple[str, int]:
    """Host and port. One with a password in it is not shown."""
    try:
        parts = urlsplit(url)
        port = 443 if parts.port is None else parts.port
    except ValueError as fault:
        raise OperatorFault("control.url: is not https://HOST[:PORT]") from fault
    if "@" in parts.netloc:
        raise OperatorFault("control.url: must hold no user or password; commands show a certificate (client_certificate_file)")
    if parts.scheme != "https" or not parts.hostname or not port or parts.path not in ("", "/"):
        raise OperatorFault(f"control.url: `{url}` is not https://HOST[:PORT]")
    return parts.hostname, port


def _change(answer: Mapping[str, Any]) -> Change:
    return Change(epoch=int(answer["epoch"]), result=dict(answer["result"]))


def name_of(entry: Mapping[str, Any]) -> str:
    """`x` of the entry `agent/x`."""
    return str(entry["key"]).partition("/")[2]


def _tls(fault: ssl.SSLError) -> str:
    """OpenSSL's reason, without the numbers around it."""
    return str(getattr(fault, "verify_message", "") or fault.reason or "tls failed").replace("_", " ").lower()
