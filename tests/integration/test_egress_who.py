"""Who called, for whom and in which trace: from a real program through a real door to the store, and out of the commands."""

import hashlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.egress import credential
from tests.support.governed import AGENT, Governed, refusal_of
from tests.support.home import wait_until
from tests.support.rawhttp import Reader, breaks_off, read_answer
from tests.support.tokens import AUDIENCE, EC, ED, ISSUER, claims, jwks, token

POLICY = '@id("anybody-uses-the-site")\npermit (principal, action, resource in Domain::"example.test");\n'
CHAIN = ['User::"alice"', 'Agent::"planner"', 'Agent::"researcher"']
PARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Governed]:
    folder = tmp_path_factory.mktemp("who")
    keys = folder / "idp.json"
    keys.write_bytes(jwks(ED, EC))
    issuer = f'[[issuer]]\nurl = "{ISSUER}"\naudience = "{AUDIENCE}"\njwks_file = "{keys}"\n'
    made = Governed(folder, config=issuer, names=("www.example.test",))
    made.wardline.write_policies(POLICY, "anybody.cedar")
    with made:
        for name, subject in (("researcher", "r-17"), ("planner", "p-3")):
            made.add_agent(name, "--sub", ISSUER, subject)
        yield made


def fresh(**more: Any) -> str:
    """A token of `researcher`, which acts for `planner`, which acts for alice."""
    now = int(time.time())
    acts = {"sub": "alice", "act": {"sub": "r-17", "act": {"sub": "p-3"}}}
    return token(claims(**{"exp": now + 600, "iat": now - 5, **acts, **more}), key=EC)


@pytest.mark.parametrize("how", ["bearer", "password"])
def test_a_tokens_chain_is_in_the_record_and_the_commands_tell_it(site: Governed, how: str) -> None:
    text, session = fresh(jti=how), "" if how == "bearer" else "task-9"
    url = f"http://{site.http('www')}/echo?{how}"
    if how == "bearer":
        site.curl(url, "--proxy-header", f"proxy-authorization: Bearer {text}", proxy=f"http://{site.address}")
    else:
        site.curl(url, proxy=site.proxy(f"researcher+{session}", text))
    (seen,) = [one for one in site.origins.seen if one.path == f"/echo?{how}"]
    trace = seen.all("traceparent")[0].split("-")[1]
    (call,) = site.calls(f"trace_id = '{trace}'")
    wanted = {
        "agent": "researcher", "root": CHAIN[0], "chain": CHAIN, "depth": 3, "assurance": ["signed", "signed"], "proof": "jws",
        "credential": hashlib.sha256(text.encode()).hexdigest(), "session": session, "verdict": "allow", "outcome": "ok",
    }  # fmt: skip
    assert {key: call[key] for key in wanted} == wanted
    assert text not in json.dumps(call, default=str)
    explained = site.wardline.run("explain", call["call_id"]).stdout
    assert "alice" in explained
    assert "anybody-uses-the-site" in explained
    agents = {row["name"]: row for row in json.loads(site.wardline.run("inventory", "--kind", "agent", "--json").stdout)}
    assert agents["researcher"]["credentials"] == ["jws"]
    principals = json.loads(site.wardline.run("inventory", "--kind", "principal", "--json").stdout)
    assert {row["name"] for row in principals} >= set(CHAIN)


@pytest.mark.parametrize(("given", "kept"), [
    ((f"traceparent: {PARENT}", "tracestate: a=1,b=2"), True), ((), False),
    (("traceparent: 00-xyz", "tracestate: a=1"), False),
    ((f"traceparent: 00-{'0' * 32}-{'cd' * 8}-01", "tracestate: a=1"), False),
], ids=["continued", "minted", "minted for one that is none", "minted for zeros"])  # fmt: skip
def test_a_trace_leads_through_the_door_and_the_record(site: Governed, given: tuple[str, ...], kept: bool) -> None:
    mark = f"/echo?trace={abs(hash((given, kept)))}"
    site.curl(f"http://{site.http('www')}{mark}", *(word for line in given for word in ("-H", line)))
    (seen,) = [one for one in site.origins.seen if one.path == mark]
    version, trace, span, flags = seen.all("traceparent")[0].split("-")
    (call,) = site.calls(f"trace_id = '{trace}' AND query_bytes = {len(mark) - 6}", "call_id, parent_span")
    assert (version, len(trace), len(flags)) == ("00", 32, 2)
    assert (trace == "ab" * 16) == kept
    assert seen.all("tracestate") == (["a=1,b=2"] if kept else [])
    assert call["parent_span"] == ("cd" if kept else "00") * 8
    assert span == call["call_id"][8:16] + call["call_id"][24:], "the origin's parent is our call"


def test_what_no_call_came_of_is_counted_in_the_store_and_its_claimants_are_shadows(site: Governed) -> None:
    before = refusals(site)
    host, _, port = site.address.rpartition(":")
    ask = f"GET http://{site.http('www')}/echo?nobody HTTP/1.1\r\nhost: {site.http('www')}\r\n"
    wrong, stranger = credential(AGENT, "wrong").decode(), credential("mallory", "x").decode()
    requests = [f"{ask}proxy-authorization: {wrong}\r\n\r\n"] * 20
    requests += [f"{ask}proxy-authorization: {stranger}\r\n\r\n"] * 7 + [f"{ask}\r\n"] * 5 + [f"{ask}host: other\r\n\r\n"] * 3
    statuses = []
    for request in requests:
        with socket.create_connection((host, int(port)), timeout=20) as client:
            client.sendall(request.encode())
            got = read_answer(client)
            refusal_of(got.body.decode())
            statuses.append(got.status)
    assert statuses == [407] * 32 + [400] * 3
    wanted = {
        ("identity", "credential", AGENT, 407): 20, ("identity", "credential", "mallory", 407): 7,
        ("identity", "missing", "", 407): 5, ("malformed", "two-hosts", "", 400): 3,
    }  # fmt: skip

    def counted() -> bool:
        return {key: count - before.get(key, 0) for key, count in refusals(site).items() if count != before.get(key)} == wanted

    wait_until(counted, 30, lambda: str(refusals(site)))
    assert not [one for one in site.origins.seen if one.path == "/echo?nobody"]
    (shadow,) = json.loads(site.wardline.run("inventory", "--kind", "shadow", "--json").stdout)
    assert (shadow["name"], shadow["failed"]) == ("mallory", 7)


def refusals(site: Governed) -> dict[tuple[Any, ...], int]:
    rows = site.wardline.sql("SELECT reason, what, agent, status, sum(count) FROM refusals GROUP BY ALL")
    return {row[:4]: int(row[4]) for row in rows}


def test_a_revoked_root_principal_ends_the_tunnels_of_all_that_act_for_it(site: Governed) -> None:
    """By the command, through control and the host's board; what others have open stays."""
    host, _, port = site.address.rpartition(":")
    session = "tunnelled"
    with socket.create_connection((host, int(port)), timeout=20) as mine, socket.create_connection((host, int(port))) as other:
        for client, login in (
            (mine, credential(f"researcher+{session}", fresh())), (other, credential(f"{AGENT}+{session}-2", site.secret)),
        ):  # fmt: skip
            target = site.http("www")
            ask = f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\nproxy-authorization: {login.decode()}\r\n\r\n"
            client.sendall(ask.encode())
            assert Reader(client).head()[0].startswith("HTTP/1.1 200 ")
            _asks(client)
        site.wardline.run("revoke", "principal", 'User::"alice"', "--reason", "left the company")
        assert breaks_off(mine)
        _asks(other)
        (call,) = site.calls(f"session = '{session}'", "verdict, outcome, reason, error, root, address")
    assert call == {
        "verdict": "deny", "outcome": "refused", "reason": "revoked", "error": "revoked while open", "root": CHAIN[0],
        "address": site.origins.http,
    }  # fmt: skip
    done = site.curl(f"http://{site.http('www')}/echo", proxy=site.proxy("researcher", fresh()))
    assert refusal_of(done.stdout)["reason"] == "revoked"


def _asks(client: socket.socket) -> None:
    """A request inside the tunnel."""
    client.sendall(b"GET /echo HTTP/1.1\r\nhost: x\r\n\r\n")
    assert read_answer(client).status == 200
