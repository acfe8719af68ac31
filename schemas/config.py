"""`wardline.toml`: every key, its default, its bounds. `docs/configuration.md` documents each; a test holds the two together.

A key that is not listed here is refused, so that a misspelt limit never silently keeps its default.
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, get_type_hints

from schemas import limits, siem
from schemas.detectors import AGENT, ANY, BEACON, DETECTORS, REVOCABLE, ROOT
from schemas.errors import OperatorFault
from schemas.topics import DEFAULT_PREFIX


def _whole(default: int, low: int, high: int) -> Any:
    return field(default=default, metadata={"low": low, "high": high})


def _choice(default: str, *choices: str) -> Any:
    return field(default=default, metadata={"choices": choices})


TEXTS_MAX: Final = 256
"""Texts in one array of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kafka:
    """`[kafka]`: where the broker is. Empty `servers` means the embedded one."""

    servers: str = ""
    prefix: str = DEFAULT_PREFIX
    partitions: int = _whole(4, 1, 1024)
    replication: int = _whole(1, 1, 15)
    retention_hours: int = _whole(168, 1, 24 * 365 * 10)
    security_protocol: str = _choice("PLAINTEXT", "PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
    sasl_mechanism: str = _choice("PLAIN", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
    sasl_username: str = ""
    sasl_password_file: str = ""
    tls_ca_file: str = ""
    tls_certificate_file: str = ""
    tls_key_file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickHouse:
    """`[clickhouse]`: where the store is. Empty `url` means the embedded one."""

    url: str = ""
    database: str = "wardline"
    writer: str = "writer"
    writer_password_file: str = ""
    reader: str = "reader"
    reader_password_file: str = ""
    tls_ca_file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Enforcer:
    """`[enforcer]`: limits of a host and its doors; bytes and milliseconds."""

    segment_bytes: int = _whole(limits.SEGMENT_BYTES, 1 << 16, 1 << 30)
    spool_bytes: int = _whole(limits.SPOOL_BYTES_MAX, 1 << 17, 1 << 40)
    spool_reserved_bytes: int = _whole(limits.SPOOL_RESERVED_BYTES, 1 << 15, 1 << 30)
    outbox_bytes: int = _whole(limits.OUTBOX_BYTES_MAX, 1 << 20, 1 << 42)
    frame_records: int = _whole(limits.FRAME_RECORDS_MAX, 1, limits.FRAME_RECORDS_MAX)
    seal_ms: int = _whole(50, 1, 10_000)
    resend_ms: int = _whole(5_000, 100, 600_000)
    inflight_bytes: int = _whole(limits.INFLIGHT_BYTES_MAX, 1 << 16, 1 << 34)
    fsync: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """`[worker]`: how the worker batches and when it gives up."""

    batch_records: int = _whole(100_000, 1, 500_000)
    quiet_ms: int = _whole(200, 1, 60_000)
    session_timeout_ms: int = _whole(10_000, 6_000, 300_000)
    insert_timeout_s: int = _whole(120, 1, 3_600)
    watchdog_s: int = _whole(180, 5, 3_600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """`[store]`: the embedded store."""

    reader_threads: int = _whole(3, 1, 64)
    query_seconds: int = _whole(120, 1, 86_400)
    query_bytes: int = _whole(4 << 30, 1 << 20, 1 << 42)


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """`[control]`: the heartbeat, and the API over TCP (off without `listen`) with TLS and client certificates."""

    heartbeat_ms: int = _whole(1_000, 100, 2_000)
    stale_ms: int = _whole(5_000, 500, 5_000)
    ack_s: int = _whole(5, 1, 600)
    watch_ms: int = _whole(50, 10, 60_000)
    listen: str = ""
    tls_certificate_file: str = ""
    tls_key_file: str = ""
    tls_client_ca_file: str = ""
    url: str = ""
    client_certificate_file: str = ""
    client_key_file: str = ""
    client_ca_file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Egress:
    """`[egress]`: the doors that HTTP clients use as their proxy; bytes, milliseconds, and how many of what."""

    doors: int = _whole(1, 0, 64)
    listen: str = "127.0.0.1"
    port: int = _whole(17480, 0, 65535)
    allow_addresses: tuple[str, ...] = ()
    dns_servers: tuple[str, ...] = ()
    dns_ms: int = _whole(5_000, 10, 60_000)
    dial_ms: int = _whole(10_000, 10, 120_000)
    header_bytes: int = _whole(limits.HEADER_BYTES_MAX, 1 << 10, 1 << 20)
    header_ms: int = _whole(10_000, 10, 600_000)
    body_ms: int = _whole(60_000, 10, 3_600_000)
    answer_ms: int = _whole(300_000, 10, 86_400_000)
    idle_ms: int = _whole(60_000, 10, 3_600_000)
    tunnel_idle_ms: int = _whole(3_600_000, 100, 86_400_000)
    stale_tunnel_ms: int = _whole(30_000, 0, 3_600_000)
    connections: int = _whole(20_000, 1, 1_000_000)
    connections_per_agent: int = _whole(2_000, 1, 1_000_000)
    tunnels_per_agent: int = _whole(1_000, 1, 1_000_000)
    upstreams: int = _whole(2_000, 1, 1_000_000)
    upstreams_per_agent_host: int = _whole(64, 1, 10_000)
    upstream_idle_ms: int = _whole(30_000, 10, 3_600_000)
    stop_ms: int = _whole(5_000, 0, 600_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """One `[[issuer]]`: whose signed tokens are accepted as a credential, and the file with that issuer's public keys."""

    url: str = ""
    audience: str = ""
    jwks_file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detect:
    """`[detect]`: whether calls are stitched and looked at, and how much of the past detectors know."""

    on: bool = True
    lookback_days: int = _whole(15, 1, 400)


@dataclass(frozen=True, slots=True, kw_only=True)
class Respond:
    """One `[[respond]]`: which findings revoke what, for how long, and how often at most. Without one, findings only alert."""

    name: str = ""
    finding: str = ""
    min_score: int = _whole(90, 1, 100)
    revoke: str = ""
    cascade: bool = False
    for_s: int = _whole(3_600, 1, 365 * 86_400)
    limit: int = _whole(5, 1, 10_000)
    limit_s: int = _whole(3_600, 1, 365 * 86_400)


@dataclass(frozen=True, slots=True, kw_only=True)
class Siem:
    """One `[[siem]]`: where security events go, as OCSF."""

    name: str = ""
    kind: str = _choice(siem.FILE, *siem.KINDS)
    ocsf: str = _choice("1.8.0", "1.8.0", "1.1.0")
    events: tuple[str, ...] = (siem.FINDINGS, siem.REVOCATIONS)
    path: str = ""
    rotate_bytes: int = _whole(64 << 20, 1 << 16, 1 << 34)
    keep: int = _whole(8, 1, 1_000)
    url: str = ""
    token_file: str = ""
    index: str = ""
    ack: bool = False
    ca_file: str = ""
    client_certificate_file: str = ""
    client_key_file: str = ""
    retry_s: int = _whole(30, 1, 3_600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole file."""

    kafka: Kafka = field(default_factory=Kafka)
    clickhouse: ClickHouse = field(default_factory=ClickHouse)
    enforcer: Enforcer = field(default_factory=Enforcer)
    worker: Worker = field(default_factory=Worker)
    store: Store = field(default_factory=Store)
    control: Control = field(default_factory=Control)
    egress: Egress = field(default_factory=Egress)
    detect: Detect = field(default_factory=Detect)
    issuer: tuple[Issuer, ...] = ()
    respond: tuple[Respond, ...] = ()
    siem: tuple[Siem, ...] = ()


SECTIONS: Mapping[str, type[Any]] = {
    "kafka": Kafka,
    "clickhouse": ClickHouse,
    "enforcer": Enforcer,
    "worker": Worker,
    "store": Store,
    "control": Control,
    "egress": Egress,
    "detect": Detect,
}


def load_config(path: Path) -> Config:
    """Read and check a configuration file; a file that is not there is all defaults.

    Raises OperatorFault naming the file, the key, the value and its bounds.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Config()
    except OSError as fault:
        raise OperatorFault(f"{path}: cannot be read: {fault.strerror}") from fault
    try:
        tree = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise OperatorFault(f"{path}: {str(fault)[:1].lower()}{str(fault)[1:]}") from fault
    return check_config(tree, str(path))


def check_config(tree: Mapping[str, Any], name: str) -> Config:
    """Turn parsed TOML into a Config, or raise OperatorFault that begins with `name`."""
    parts: dict[str, Any] = {}
    for section, table in tree.items():
        if section in TABLES:
            parts[section] = TABLES[section](table, name)
            continue
        kind = SECTIONS.get(section)
        if kind is None:
            raise OperatorFault(f"{name}: unknown section `{section}`, known are {', '.join([*SECTIONS, *TABLES])}")
        if not isinstance(table, dict):
            raise OperatorFault(f"{name}: `{section}` is not a section")
        parts[section] = _section(kind, table, f"{name}: {section}")
    config = Config(**parts)
    own = config.enforcer
    if own.spool_bytes < 2 * own.segment_bytes:
        raise OperatorFault(
            f"{name}: enforcer.spool_bytes: {own.spool_bytes} is less than two segments of {own.segment_bytes} bytes"
            " (segment_bytes)"
        )
    if own.spool_reserved_bytes > own.spool_bytes - own.segment_bytes:
        raise OperatorFault(
            f"{name}: enforcer.spool_reserved_bytes: {own.spool_reserved_bytes} leaves no segment for allowed calls"
            f" of {own.spool_bytes} bytes (spool_bytes)"
        )
    control = config.control
    if control.stale_ms < 2 * control.heartbeat_ms:
        raise OperatorFault(
            f"{name}: control.stale_ms: {control.stale_ms} is less than two heartbeats of {control.heartbeat_ms} ms"
            " (heartbeat_ms)"
        )
    return config


def _tables(kind: type[Any], tables: Any, name: str, section: str, needs: tuple[str, ...]) -> dict[str, Any]:
    """An array of tables, by the first of the keys that each must have, which must differ."""
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise OperatorFault(f"{name}: `{section}` is no array of tables: write `[[{section}]]`")
    found: dict[str, Any] = {}
    for table in tables:
        one = _section(kind, table, f"{name}: {section}")
        for key in needs:
            if not getattr(one, key):
                raise OperatorFault(f"{name}: {section}.{key}: is missing")
        called = getattr(one, needs[0])
        if called in found:
            raise OperatorFault(f"{name}: {section}.{needs[0]}: `{called}` stands twice")
        found[called] = one
    return found


def _issuers(tables: Any, name: str) -> tuple[Issuer, ...]:
    return tuple(_tables(Issuer, tables, name, "issuer", ("url", "audience", "jwks_file")).values())


def _responds(tables: Any, name: str) -> tuple[Respond, ...]:
    rules = tuple(_tables(Respond, tables, name, "respond", ("name", "finding", "revoke")).values())
    for rule in rules:
        _check_rule(rule, f"{name}: respond `{rule.name}`")
    return rules


def _check_rule(rule: Respond, where: str) -> None:
    """A rule that could never act, or that would act on too little, is refused where it is written."""
    if len(rule.name.encode()) > limits.NAME_BYTES_MAX or not rule.name.isprintable():
        raise OperatorFault(f"{where}: name: is not {limits.NAME_BYTES_MAX} printable bytes at most")
    if rule.finding == BEACON:
        raise OperatorFault(f"{where}: finding: `{BEACON}` alone never revokes: two of three such findings are false")
    if rule.finding not in (ANY, *DETECTORS):
        known = ", ".join(one for one in (ANY, *DETECTORS) if one != BEACON)
        raise OperatorFault(f"{where}: finding: `{rule.finding}` is no detector, known are {known}")
    kinds = tuple(dict.fromkeys(kind for named in REVOCABLE.values() for kind in named))
    if rule.revoke not in kinds:
        raise OperatorFault(f"{where}: revoke: `{rule.revoke}` cannot be revoked by a rule, only {', '.join(kinds)}")
    if rule.finding != ANY and rule.revoke not in (named := REVOCABLE[rule.finding]):
        raise OperatorFault(f"{where}: revoke: a `{rule.finding}` finding names no {rule.revoke}, only {', '.join(named)}")
    if rule.cascade and rule.revoke not in (AGENT, ROOT):
        raise OperatorFault(f"{where}: cascade: a {rule.revoke} has one position in a chain, only {AGENT} and {ROOT} have more")


def _siems(tables: Any, name: str) -> tuple[Siem, ...]:
    found = tuple(_tables(Siem, tables, name, "siem", ("name",)).values())
    for sink in found:
        siem.check_sink(sink, f"{name}: siem")
    if sum(sink.kind == siem.KAFKA for sink in found) > 1:
        raise OperatorFault(f"{name}: siem.kind: `{siem.KAFKA}` stands twice, there is one topic `{siem.ALERTS}`")
    paths = [sink.path for sink in found if sink.kind == siem.FILE]
    if twice := {path for path in paths if paths.count(path) > 1}:
        raise OperatorFault(f"{name}: siem.path: `{min(twice)}` stands twice")
    return found


TABLES: Final[Mapping[str, Callable[[Any, str], tuple[Any, ...]]]] = {
    "issuer": _issuers, "respond": _responds, "siem": _siems,
}  # fmt: skip


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise OperatorFault(f"{where}: `{value}` is no array of texts")
    if len(value) > TEXTS_MAX:
        raise OperatorFault(f"{where}: has {len(value)} texts, limit is {TEXTS_MAX}")
    return tuple(value)


def _section(kind: type[Any], given: Mapping[str, Any], where: str) -> Any:
    known = {f.name: f for f in fields(kind)}
    hints = get_type_hints(kind)
    table = dict(given)
    for key, value in given.items():
        if key not in known:
            raise OperatorFault(f"{where}.{key}: unknown key, known are {', '.join(known)}")
        wanted: type[Any] = hints[key]
        if wanted == tuple[str, ...]:
            table[key] = _texts(value, f"{where}.{key}")
            continue
        if type(value) is not wanted:
            raise OperatorFault(f"{where}.{key}: `{value}` is not {'true or false' if wanted is bool else wanted.__name__}")
        meta = known[key].metadata
        if "low" in meta and not meta["low"] <= value <= meta["high"]:
            raise OperatorFault(f"{where}.{key}: {value} is outside {meta['low']} to {meta['high']}")
        if "choices" in meta and value not in meta["choices"]:
            raise OperatorFault(f"{where}.{key}: `{value}` is none of {', '.join(meta['choices'])}")
    return kind(**table)
