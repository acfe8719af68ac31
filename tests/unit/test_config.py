"""The configuration file: what is wrong is named by file, key, value and bound, and so are limits that do not fit together."""

import json
from pathlib import Path

import pytest

from schemas.config import Config, Respond, load_config
from schemas.errors import OperatorFault
from schemas.siem import host_of

SPLUNK = "[[siem]]\nname = 'a'\nkind = 'splunk'\nurl = 'https://s.example'\n"


def load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "wardline.toml"
    path.write_text(text)
    return load_config(path)


def rule(**given: object) -> str:
    """A table that is right but for what is given."""
    table = {"name": "r", "finding": "leak", "revoke": "agent"} | given
    return "[[respond]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())


def test_no_file_is_all_defaults(tmp_path: Path) -> None:
    assert load_config(tmp_path / "absent.toml") == Config() == load(tmp_path, "")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[kafka]\npartitions = 0", "kafka.partitions: 0 is outside 1 to 1024"),
        ("[kafka]\npartitions = true", "kafka.partitions: `True` is not int"),
        ("[kafka]\nsecurity_protocol = 'TLS'", "kafka.security_protocol: `TLS` is none of PLAINTEXT, SSL, SASL_PLAINTEXT"),
        ("[kafka]\nserver = 'x'", "kafka.server: unknown key, known are servers,"),
        ("[kafak]\nservers = 'x'", "unknown section `kafak`, known are kafka,"),
        ("kafka = 1", "`kafka` is not a section"),
        ("[kafka", "wardline.toml: expected ']'"),
        ("[enforcer]\nfsync = 1", "enforcer.fsync: `1` is not true or false"),
        ("[enforcer]\nspool_bytes = 8388608", "enforcer.spool_bytes: 8388608 is less than two segments of 8388608 bytes"),
        ("[enforcer]\nspool_reserved_bytes = 134217728", "enforcer.spool_reserved_bytes: 134217728 leaves no segment"),
        ("[egress]\nallow_addresses = '10.0.0.0/8'", "egress.allow_addresses: `10.0.0.0/8` is no array of texts"),
        ("[egress]\ndns_servers = [1]", "egress.dns_servers: `[1]` is no array of texts"),
        ("[issuer]\nurl = 'x'", "`issuer` is no array of tables: write `[[issuer]]`"),
        ("[[issuer]]\nurl = 'x'\naudience = 'y'", "issuer.jwks_file: is missing"),
        ("[[issuer]]\nurl = 'x'\nkey = 'y'", "issuer.key: unknown key, known are url, audience, jwks_file"),
        (2 * "[[issuer]]\nurl = 'x'\naudience = 'y'\njwks_file = 'z'\n", "issuer.url: `x` stands twice"),
        (rule(finding="leek"), "respond `r`: finding: `leek` is no detector, known are any, first-seen, second-holder,"),
        (rule(finding="beacon"), "respond `r`: finding: `beacon` alone never revokes"),
        (rule(finding="limit"), "respond `r`: finding: `limit` is no detector"),
        (rule(revoke="key"), "respond `r`: revoke: `key` cannot be revoked by a rule, only agent, root, destination,"),
        (rule(revoke="session"), "respond `r`: revoke: a `leak` finding names no session, only agent, root, destination"),
        (rule(revoke="destination", cascade=True), "respond `r`: cascade: a destination has one position in a chain"),
        (rule(min_score=0), "respond.min_score: 0 is outside 1 to 100"),
        (rule(for_s=0), "respond.for_s: 0 is outside 1 to 31536000"),
        (2 * rule(), "respond.name: `r` stands twice"),
        ("[[respond]]\nname = 'r'\nfinding = 'leak'", "respond.revoke: is missing"),
        (rule(name="r\u0007"), "name: is not 256 printable bytes at most"),
        ("[[siem]]\nkind = 'file'", "siem.name: is missing"),
        ("[[siem]]\nname = 'a/b'\npath = 'x'", "siem.name: `a/b` is not 1 to 32 of a-z, 0-9 and `-`"),
        ("[[siem]]\nname = 'alerts'\npath = 'x'", "siem.name: `alerts` is the topic's, choose another"),
        ("[[siem]]\nname = 'a'\nkind = 'udp'", "siem.kind: `udp` is none of file, splunk, syslog, kafka"),
        ("[[siem]]\nname = 'a'", "siem.path: is missing, a sink of kind `file` needs it"),
        ("[[siem]]\nname = 'a'\npath = 'x'\nurl = 'y'", "siem.url: a sink of kind `file` has no such key"),
        ("[[siem]]\nname = 'a'\npath = 'x'\nack = true", "siem.ack: a sink of kind `file` has no such key"),
        ("[[siem]]\nname = 'a'\npath = 'x'\nocsf = '1.7.0'", "siem.ocsf: `1.7.0` is none of 1.8.0, 1.1.0"),
        ("[[siem]]\nname = 'a'\npath = 'x'\nevents = []", "siem.events: is empty, known are findings, revocations, refusals"),
        ("[[siem]]\nname = 'a'\npath = 'x'\nevents = ['all']", "siem.events: `all` is none of findings, revocations, refusals"),
        ("[[siem]]\nname = 'a'\npath = 'x'\nkeep = 0", "siem.keep: 0 is outside 1 to 1000"),
        (2 * "[[siem]]\nname = 'a'\npath = 'x'\n", "siem.name: `a` stands twice"),
        ("[[siem]]\nname = 'a'\npath = 'x'\n[[siem]]\nname = 'b'\npath = 'x'\n", "siem.path: `x` stands twice"),
        ("[[siem]]\nname = 'a'\nkind = 'kafka'\n[[siem]]\nname = 'b'\nkind = 'kafka'\n", "siem.kind: `kafka` stands twice"),
        (SPLUNK, "siem.token_file: is missing, a sink of kind `splunk` needs it"),
        (SPLUNK + "token_file = 't'\nclient_key_file = 'k'", "client_certificate_file and client_key_file need each other"),
        (SPLUNK.replace("https", "http") + "token_file = 't'", "`http://s.example` would show the token to the network"),
        (SPLUNK.replace("https", "ftp") + "token_file = 't'", "siem.url: `ftp://s.example` is not https://HOST[:PORT]"),
        (SPLUNK.replace("s.ex", "me:pw@s.ex") + "token_file = 't'", "siem.url: must hold no user or password"),
        ("[[siem]]\nname = 'a'\nkind = 'syslog'\nurl = 'udp://s.example:514'", "`udp://s.example:514` is not tls://HOST[:PORT]"),
        ("[[siem]]\nname = 'a'\nkind = 'syslog'\nurl = 'tls://s.example:x'", "`tls://s.example:x` is not tls://HOST[:PORT]"),
        ("[control]\nstale_ms = 1999", "control.stale_ms: 1999 is less than two heartbeats of 1000 ms"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(OperatorFault) as caught:
        load(tmp_path, text)
    assert says in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "wardline.toml"))
    assert "\n" not in str(caught.value)


def test_arrays_of_texts_and_issuers_are_read(tmp_path: Path) -> None:
    text = "[egress]\nallow_addresses = ['127.0.0.0/8:80']\n[[issuer]]\nurl = 'u'\naudience = 'a'\njwks_file = 'f'"
    config = load(tmp_path, text)
    assert config.egress.allow_addresses == ("127.0.0.0/8:80",)
    assert [(one.url, one.audience, one.jwks_file) for one in config.issuer] == [("u", "a", "f")]


def test_rules_are_read_in_their_order_with_their_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, rule() + rule(name="all", finding="any", revoke="root", cascade=True, limit=1))
    assert config.respond == (
        Respond(name="r", finding="leak", min_score=90, revoke="agent", cascade=False, for_s=3600, limit=5, limit_s=3600),
        Respond(name="all", finding="any", revoke="root", cascade=True, limit=1),
    )


def test_sinks_are_read_with_their_defaults(tmp_path: Path) -> None:
    text = (
        SPLUNK + "token_file = 't'\n"
        "[[siem]]\nname = 'b'\npath = 'alerts.jsonl'\nevents = ['refusals']\nocsf = '1.1.0'\n"
        "[[siem]]\nname = 'c'\nkind = 'syslog'\nurl = 'tls://[::1]:7000'\n"
        "[[siem]]\nname = 'd'\nkind = 'splunk'\nurl = 'http://127.0.0.1:9000'\ntoken_file = 't'\n"
        "[[siem]]\nname = 'alerts'\nkind = 'kafka'\n"
    )
    sinks = load(tmp_path, text).siem
    assert [(one.name, one.kind, one.ocsf, one.events, one.retry_s) for one in sinks[:2]] == [
        ("a", "splunk", "1.8.0", ("findings", "revocations"), 30), ("b", "file", "1.1.0", ("refusals",), 30),
    ]  # fmt: skip
    found = [host_of(sinks[n]) for n in (0, 2, 3)]
    assert found == [("s.example", 8088, True), ("::1", 7000, True), ("127.0.0.1", 9000, False)]
