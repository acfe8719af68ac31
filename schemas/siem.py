"""What a `[[siem]]` table must be: which keys each kind of sink has, and which form they have.

A key of another kind is refused: it would be read by nobody, and whoever wrote it meant something.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Final

from schemas.errors import OperatorFault

if TYPE_CHECKING:
    from schemas.config import Siem

FILE: Final = "file"
SPLUNK: Final = "splunk"
SYSLOG: Final = "syslog"
KAFKA: Final = "kafka"
KINDS: Final = (FILE, SPLUNK, SYSLOG, KAFKA)

ALERTS: Final = "alerts"
"""What the sink of the topic `alerts` is called where no table of kind `kafka` names it: the topic is fed all the same."""

FINDINGS: Final = "findings"
REVOCATIONS: Final = "revocations"
REFUSALS: Final = "refusals"
EVENTS: Final = (FINDINGS, REVOCATIONS, REFUSALS)

SPLUNK_PORT: Final = 8088
SYSLOG_PORT: Final = 6514
"""Of syslog over TLS (RFC 5425, section 4.1)."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_URL: Final = re.compile(r"([a-z]+)://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?/?")
_TLS: Final = ("ca_file", "client_certificate_file", "client_key_file")
_NEEDS: Final[Mapping[str, tuple[str, ...]]] = {FILE: ("path",), SPLUNK: ("url", "token_file"), SYSLOG: ("url",), KAFKA: ()}
_MAY: Final[Mapping[str, tuple[str, ...]]] = {
    FILE: ("rotate_bytes", "keep"), SPLUNK: ("index", "ack", *_TLS), SYSLOG: _TLS, KAFKA: (),
}  # fmt: skip
_ALL: Final = ("name", "kind", "ocsf", "events", "retry_s")


def check_sink(sink: "Siem", where: str) -> None:
    """Raise OperatorFault that begins with `where` unless a table is one sink that can be fed."""
    if not _NAME.fullmatch(sink.name):
        raise OperatorFault(f"{where}.name: `{sink.name}` is not 1 to 32 of a-z, 0-9 and `-`: a file is called so")
    if sink.name == ALERTS and sink.kind != KAFKA:
        raise OperatorFault(f"{where}.name: `{ALERTS}` is the topic's, choose another")
    for key in _NEEDS[sink.kind]:
        if not getattr(sink, key):
            raise OperatorFault(f"{where}.{key}: is missing, a sink of kind `{sink.kind}` needs it")
    known = {*_ALL, *_NEEDS[sink.kind], *_MAY[sink.kind]}
    for one in fields(sink):
        if one.name not in known and one.default is not MISSING and getattr(sink, one.name) != one.default:
            raise OperatorFault(f"{where}.{one.name}: a sink of kind `{sink.kind}` has no such key")
    if not sink.events:
        raise OperatorFault(f"{where}.events: is empty, known are {', '.join(EVENTS)}")
    for event in sink.events:
        if event not in EVENTS:
            raise OperatorFault(f"{where}.events: `{event}` is none of {', '.join(EVENTS)}")
    if bool(sink.client_certificate_file) != bool(sink.client_key_file):
        raise OperatorFault(f"{where}: client_certificate_file and client_key_file need each other")
    if sink.kind in (SPLUNK, SYSLOG):
        host_of(sink, where)


def host_of(sink: "Siem", where: str = "siem") -> tuple[str, int, bool]:
    """Where a sink is reached by network: host, port, and whether by TLS.

    Raises OperatorFault. Splunk may be asked without TLS on a loopback address, where nobody listens in; nowhere else, since
    the token is in each request.
    """
    wanted = "https://HOST[:PORT]" if sink.kind == SPLUNK else "tls://HOST[:PORT]"
    if "@" in sink.url:
        raise OperatorFault(f"{where}.url: must hold no user or password")
    found = _URL.fullmatch(sink.url)
    scheme, host, port = found.groups() if found else ("", "", None)
    if sink.kind == SPLUNK and scheme == "http" and not _loopback(host.strip("[]")):
        raise OperatorFault(f"{where}.url: `{sink.url}` would show the token to the network, it must be {wanted}")
    if scheme not in (("http", "https") if sink.kind == SPLUNK else ("tls",)) or not 0 < int(port or 1) < 65536:
        raise OperatorFault(f"{where}.url: `{sink.url}` is not {wanted}")
    default = SPLUNK_PORT if sink.kind == SPLUNK else SYSLOG_PORT
    return host.strip("[]"), int(port or default), scheme != "http"


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
