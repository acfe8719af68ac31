"""How any process of ours reaches Kafka and ClickHouse: embedded by run file, or the configured servers.

The embedded broker has another port after each start, so whoever reconnects asks again.
"""

import asyncio
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from schemas.config import Config
from schemas.errors import OperatorFault, PeerFault
from schemas.home import Home
from schemas.keys import loose_mode
from schemas.process import read_run_file

STOP_S: Final = 5.0
"""How long a Kafka client may take to close."""


def embedded_broker(config: Config) -> bool:
    """Whether the broker is our own in-memory one, with its 5 MiB per partition."""
    return not config.kafka.servers


def kafka_servers(home: Home, config: Config) -> str:
    """HOST:PORT[,...] of the broker now. Raises PeerFault while the embedded one is not up."""
    if config.kafka.servers:
        return config.kafka.servers
    return _address(home, "broker")


def broker_now(home: Home, config: Config) -> tuple[str, object]:
    """The servers, and what changes when an embedded broker is another one (it then knows nothing).

    Raises PeerFault while the embedded one is not up.
    """
    servers = kafka_servers(home, config)
    if not embedded_broker(config):
        return servers, servers
    said = read_run_file(home.run_file("broker")) or {}
    return servers, (said.get("pid"), said.get("address"))


async def stop_client(client: Any, seconds: float = STOP_S) -> None:
    """Close a Kafka client within `seconds`. What its own tasks raise, their cancellation too, ends with it and not with us."""
    stopping = asyncio.ensure_future(client.stop())
    try:
        await asyncio.wait([stopping], timeout=seconds)
    finally:
        stopping.cancel()
    if stopping.done() and not stopping.cancelled():
        stopping.exception()


def first_line(fault: BaseException) -> str:
    """A fault of a Kafka client in one line."""
    return f"{type(fault).__name__}: {str(fault).splitlines()[0] if str(fault) else 'no answer'}"


def _address(home: Home, name: str) -> str:
    said = read_run_file(home.run_file(name))
    if said is None or not said["alive"] or said.get("state") != "ready":
        raise PeerFault(f"the {name} of `{home.root}` is not up")
    return str(said["address"])


def kafka_security(config: Config) -> dict[str, Any]:
    """The keyword arguments that aiokafka's clients take for TLS and SASL. Raises OperatorFault for a missing file."""
    kafka = config.kafka
    options: dict[str, Any] = {"security_protocol": kafka.security_protocol}
    if kafka.security_protocol in ("SSL", "SASL_SSL"):
        try:
            context = ssl.create_default_context(cafile=kafka.tls_ca_file or None)
            if kafka.tls_certificate_file:
                context.load_cert_chain(kafka.tls_certificate_file, kafka.tls_key_file or None)
        except (OSError, ssl.SSLError) as fault:
            raise OperatorFault(f"kafka.tls_*_file: cannot be loaded: {fault}") from fault
        options["ssl_context"] = context
    if kafka.security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = kafka.sasl_mechanism
        options["sasl_plain_username"] = kafka.sasl_username
        options["sasl_plain_password"] = read_secret(Path(kafka.sasl_password_file))
    return options


def read_secret(path: Path) -> str:
    """A password from its file. Raises OperatorFault when it cannot be read or others can read it."""
    if wrong := loose_mode(path):
        raise OperatorFault(wrong)
    try:
        return path.read_text().rstrip("\n")
    except OSError as fault:
        raise OperatorFault(f"{path}: cannot be read: {fault.strerror}") from fault


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLink:
    """Keyword arguments for `clickhouse_connect.get_client`; the repr keeps the password to itself."""

    host: str
    port: int
    secure: bool
    username: str
    password: str
    database: str
    ca_cert: str

    def __repr__(self) -> str:
        return f"StoreLink({self.username}@{self.host}:{self.port})"

    def options(self) -> dict[str, Any]:
        """What `get_client` takes."""
        given: dict[str, Any] = {
            "host": self.host, "port": self.port, "username": self.username, "password": self.password,
            "interface": "https" if self.secure else "http",
        }  # fmt: skip
        if self.ca_cert:
            given["ca_cert"] = self.ca_cert
        return given


def store_link(home: Home, config: Config, user: str) -> StoreLink:
    """How `user` (`writer` or `reader`) reaches the store now. Raises PeerFault while the embedded one is not up."""
    own = config.clickhouse
    named, secret = (own.writer, own.writer_password_file) if user == "writer" else (own.reader, own.reader_password_file)
    if own.url:
        parts = urlsplit(own.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise OperatorFault(f"clickhouse.url: `{own.url}` is not http(s)://HOST[:PORT]")
        secure = parts.scheme == "https"
        host, port = parts.hostname, parts.port or (8443 if secure else 8123)
    else:
        host, _, text = _address(home, "store").rpartition(":")
        port, secure = int(text), False
    password = read_secret(Path(secret) if secret else home.password(user))
    return StoreLink(host=host, port=port, secure=secure, username=named, password=password, database=own.database,
                     ca_cert=own.tls_ca_file)  # fmt: skip
