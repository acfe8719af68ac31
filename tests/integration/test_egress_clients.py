"""Real programs through a real door: `wardline up`, curl, git, pip, npm and a WebSocket, against sites of the test's own."""

import asyncio
import hashlib
import json
import os
import re
import ssl
import sys
import zipfile
from collections.abc import Iterator

import aiohttp
import pytest

from tests.support.governed import AGENT, CLOSED, Governed, refusal_of
from tests.support.origins import ADDRESS, BLOCK, digest_of_bytes


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Governed]:
    with Governed(tmp_path_factory.mktemp("clients"), doors=2) as made:
        yield made


def test_status_names_each_door_with_the_address_of_the_proxy(site: Governed) -> None:
    found = site.wardline.status()
    doors = [process for process in found["processes"] if process["name"].startswith("door-")]
    assert found["ready"], found
    assert [(door["name"], door["state"], door["host"]) for door in doors] == [
        ("door-1", "ready", "enforce-1"), ("door-2", "ready", "enforce-1"),
    ]  # fmt: skip
    assert len({door["address"] for door in doors}) == 1
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+", door["address"]) for door in doors)
    assert all(isinstance(door[key], int) for door in doors for key in ("calls", "tunnels", "epoch"))


# -- curl ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_curl_gets_what_it_would_get_without_a_door(site: Governed, secure: bool) -> None:
    (site.origins.folder / "www" / "page.html").write_bytes(b"<p>\r\n\0\xff" * 1000)
    host = site.https("www") if secure else site.http("www")
    url = f"{'https' if secure else 'http'}://{host}/page.html"
    port = (site.origins.https if secure else site.origins.http).rpartition(":")[2]
    resolved = f"www.example.test:{port}:{ADDRESS}"
    site.curl(url, "-i", "--resolve", resolved, "-o", str(site.folder / "direct"), proxy="")
    site.curl(url, "-i", "--suppress-connect-headers", "-o", str(site.folder / "through"))
    got = [(site.folder / name).read_bytes().partition(b"\r\n\r\n") for name in ("direct", "through")]
    assert got[0][2] == got[1][2] == b"<p>\r\n\0\xff" * 1000
    heads = [sorted(line for line in head.lower().split(b"\r\n") if not line.startswith(b"date:")) for head, _, _ in got]
    assert heads[0] == heads[1]


def test_a_call_is_recorded_with_who_what_and_how_much_and_without_its_secrets(site: Governed) -> None:
    url = f"http://{site.http('www')}/echo?token=hunter2&page=7"
    done = site.curl(url, "-d", "x" * 5000, "-H", "authorization: Bearer of-the-origin", proxy=site.proxy(f"{AGENT}+task-7"))
    assert done.stdout == "x" * 5000
    (call,) = site.calls("session = 'task-7'")
    wanted = {
        "agent": AGENT, "root": 'Agent::"robot"', "chain": ['Agent::"robot"'], "action": "http:POST", "verdict": "allow",
        "outcome": "ok", "status": 200, "policies": ["robot-uses-the-site"], "proof": "secret", "scheme": "http",
        "host": "www.example.test", "domain": "example.test", "path": "/echo", "address": site.origins.http, "query_bytes": 20,
    }  # fmt: skip
    assert {key: call[key] for key in wanted} == wanted
    assert call["query_bits"] > 0 < call["query_hash"]
    assert call["bytes_out"] >= 5000 <= call["bytes_in"]
    said = json.dumps(call, default=str)
    assert not [secret for secret in (site.secret, "hunter2", "of-the-origin") if secret in said]


def test_what_reaches_the_origin_has_no_proxy_credential_and_says_which_trace_it_belongs_to(site: Governed) -> None:
    site.curl(f"http://{site.http('www')}/echo?seen=1", "-H", "x-own: kept")
    seen = next(one for one in site.origins.seen if one.path == "/echo?seen=1")
    assert seen.all("proxy-authorization") == seen.all("proxy-connection") == []
    assert seen.all("x-own") == ["kept"]
    (trace,) = seen.all("traceparent")
    (call,) = site.calls(f"trace_id = '{trace.split('-')[1]}'", "agent, path, call_id")
    assert (call["agent"], call["path"]) == (AGENT, "/echo")
    assert trace.split("-")[2][8:] == call["call_id"][-8:], "the origin's parent is our call"


def test_a_refused_call_says_what_refused_it_and_what_to_ask_for(site: Governed) -> None:
    port = site.origins.http.rpartition(":")[2]
    done = site.curl(f"http://{CLOSED}:{port}/secret-place", "-i")
    head, _, body = done.stdout.partition("\n\n")
    said = refusal_of(body)
    assert head.startswith("HTTP/1.1 403 ")
    assert "content-type: application/json" in head.lower()
    assert (said["reason"], said["policy"], said["agent"], said["action"]) == ("no-permit", [], AGENT, "http:GET")
    assert said["resource"] == f'Host::"{CLOSED}:{port}"'
    assert 'permit (principal == Agent::"robot", action == Action::"http:GET"' in said["ask"]
    assert re.fullmatch(r"[0-9a-f]{32}", said["call_id"])
    (call,) = site.calls(f"call_id = '{said['call_id']}'", "verdict, outcome, reason, address")
    assert call == {"verdict": "deny", "outcome": "refused", "reason": "no-permit", "address": ""}
    assert site.names.lookups(CLOSED) == 0, "a refused name is never looked up"
    assert not [one for one in site.origins.seen if one.path == "/secret-place"]


def test_a_refused_tunnel_is_refused_before_it_is_one(site: Governed) -> None:
    done = site.curl(f"https://{CLOSED}/", "-o", "/dev/null", "-w", "%{http_connect}", check=False)
    assert (done.returncode, done.stdout) == (56, "403")
    assert site.names.lookups(CLOSED) == 0


def test_nobody_is_let_through(site: Governed) -> None:
    before = len(site.origins.seen)
    for proxy in (f"http://{site.address}", site.proxy(secret="wrong"), site.proxy("stranger"), site.proxy("robot+s", "x")):
        done = site.curl(f"http://{site.http('www')}/echo?nobody", "-i", proxy=proxy)
        head, _, body = done.stdout.partition("\n\n")
        assert head.startswith("HTTP/1.1 407 "), done.stdout
        assert 'proxy-authenticate: basic realm="wardline"' in head.lower()
        assert refusal_of(body)["reason"] == "identity"
        assert "wrong" not in done.stdout.replace("proxy-auth", "")
    assert len(site.origins.seen) == before


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_every_method_is_one_action_and_arrives_as_it_was(site: Governed, method: str) -> None:
    body = [] if method == "OPTIONS" else ["--data-binary", "@-"]
    done = site.run("sh", "-c", f"printf body | curl -sS -i -X {method} {' '.join(body)} http://{site.http('www')}/echo?{method}")
    assert f"x-method: {method}" in done.stdout.lower().replace(method.lower(), method)
    assert [one.method for one in site.origins.seen if one.path == f"/echo?{method}"] == [method]


def test_a_head_request_has_the_head_of_the_answer_and_nothing_behind_it(site: Governed) -> None:
    (site.origins.folder / "www" / "large").write_bytes(bytes(100_000))
    done = site.curl(f"http://{site.http('www')}/large", "-I", "-w", "%{size_download}")
    assert "content-length: 100000" in done.stdout.lower()
    assert done.stdout.endswith("\n0")


def test_an_upload_is_asked_for_before_it_is_sent_and_arrives_in_chunks(site: Governed) -> None:
    file = site.folder / "upload"
    file.write_bytes(BLOCK * 50)
    chunked = ("-H", "transfer-encoding: chunked", "-H", "expect: 100-continue")
    done = site.curl(f"http://{site.http('www')}/sink", "-T", str(file), *chunked, "-v")
    assert json.loads(done.stdout) == {"bytes": 50 * len(BLOCK), "sha256": digest_of_bytes(50 * len(BLOCK))}
    assert "100 Continue" in done.stderr


def test_many_requests_on_one_connection_are_many_calls(site: Governed) -> None:
    urls = [f"http://{site.http('www')}/bytes/{n}?run=keep" for n in range(200)]
    words = [word for url in urls for word in ("-o", "/dev/null", url)]
    done = site.run("curl", "-sS", "-w", "%{num_connects} ", *words, proxy=site.proxy(f"{AGENT}+keep"))
    assert done.stdout.split().count("0") == 199, "one connection to the door"
    calls = site.calls("session = 'keep'", "path, bytes_in, outcome", count=200)
    assert {call["path"] for call in calls} == {f"/bytes/{n}" for n in range(200)}
    assert {call["outcome"] for call in calls} == {"ok"}


# -- git, pip, npm -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repository(site: Governed) -> str:
    """A repository with some history at `/git/project.git`; returns its head."""
    work, bare = site.folder / "work", site.origins.folder / "git" / "project.git"
    who = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}

    def git(*words: str) -> str:
        return site.run("git", "-C", str(work), *words, more=who, proxy="").stdout

    work.mkdir()
    git("init", "-q", "-b", "main")
    for n in range(20):
        (work / f"file-{n}").write_bytes(os.urandom(20_000))
        git("add", ".")
        git("commit", "-q", "-m", f"commit {n}")
    git("clone", "-q", "--bare", str(work), str(bare))
    return git("rev-parse", "HEAD").strip()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_git_clones_the_whole_repository(site: Governed, repository: str, scheme: str) -> None:
    host = site.https("git") if scheme == "https" else site.http("git")
    target = site.folder / f"clone-{scheme}"
    site.run("git", "clone", "-q", f"{scheme}://{host}/git/project.git", str(target), proxy=site.proxy(f"{AGENT}+git-{scheme}"))
    assert site.run("git", "-C", str(target), "rev-parse", "HEAD").stdout.strip() == repository
    site.run("git", "-C", str(target), "fsck", "--full", "--strict")
    assert (target / "file-7").read_bytes() == (site.folder / "work" / "file-7").read_bytes()
    if scheme == "http":
        calls = site.calls("session = 'git-http'", "action, path, outcome", count=3)
        assert {(call["action"], call["outcome"]) for call in calls} == {("http:GET", "ok"), ("http:POST", "ok")}
        assert {call["path"] for call in calls} == {"/git/project.git/info/refs", "/git/project.git/git-upload-pack"}
    else:
        (call,) = site.calls("session = 'git-https'", "action, scheme, path, bytes_in, outcome, error")
        assert (call["action"], call["scheme"], call["path"]) == ("http:CONNECT", "connect", "")
        assert call["outcome"] == "ok" or call["error"].startswith("client: "), "some clients leave TLS with a reset"
        assert call["bytes_in"] > 20 * 20_000, "what is in the tunnel is not seen, how much is"


@pytest.fixture(scope="module")
def wheel(site: Governed) -> bytes:
    """A package index at `/simple/` with one wheel; returns the wheel."""
    www = site.origins.folder / "www"
    name = "tiny_thing-1.0-py3-none-any.whl"
    (www / "files").mkdir()
    with zipfile.ZipFile(www / "files" / name, "w") as file:
        file.writestr("tiny_thing.py", f"x = {BLOCK[:20000]!r}\n")
        file.writestr("tiny_thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n")
        file.writestr("tiny_thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("tiny_thing-1.0.dist-info/RECORD", "")
    data = (www / "files" / name).read_bytes()
    (www / "simple" / "tiny-thing").mkdir(parents=True)
    link = f'<a href="/files/{name}#sha256={hashlib.sha256(data).hexdigest()}">{name}</a>'
    (www / "simple" / "tiny-thing" / "index.html").write_text(f"<!DOCTYPE html><html><body>{link}</body></html>")
    return data


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_pip_downloads_the_wheel_that_is_there(site: Governed, wheel: bytes, scheme: str) -> None:
    host = site.https("pypi") if scheme == "https" else site.http("pypi")
    target = site.folder / f"pip-{scheme}"
    site.run(
        sys.executable, "-m", "pip", "--isolated", "download", "-q", "--disable-pip-version-check", "--no-cache-dir",
        "--no-deps", "--index-url", f"{scheme}://{host}/simple", "--trusted-host", "pypi.example.test", "--cert",
        str(site.origins.authority.file), "-d", str(target), "tiny-thing",
    )  # fmt: skip
    assert [path.read_bytes() for path in target.iterdir()] == [wheel]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_npm_views_what_the_registry_says(site: Governed, scheme: str) -> None:
    host = site.https("npm") if scheme == "https" else site.http("npm")
    version = {"name": "tiny", "version": "1.2.3", "description": "of a test", "dist": {"tarball": f"{scheme}://{host}/t.tgz"}}
    (site.origins.folder / "www" / "tiny").write_text(
        json.dumps({"name": "tiny", "dist-tags": {"latest": "1.2.3"}, "versions": {"1.2.3": version}})
    )
    settings = {
        "npm_config_registry": f"{scheme}://{host}/", "npm_config_cafile": str(site.origins.authority.file),
        "npm_config_update_notifier": "false", "npm_config_fund": "false", "npm_config_audit": "false",
        "npm_config_cache": str(site.folder / f"npm-{scheme}"), "npm_config_userconfig": "/dev/null",
    }  # fmt: skip
    said = json.loads(site.run("npm", "view", "tiny", "--json", more=settings).stdout)
    assert (said["version"], said["description"]) == ("1.2.3", "of a test")


# -- a WebSocket ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_a_websocket_echoes_texts_and_large_messages(site: Governed, scheme: str) -> None:
    host = site.https("ws") if scheme == "wss" else site.http("ws")
    session_name = f"echo-{scheme}"

    async def talk() -> None:
        context = ssl.create_default_context(cafile=str(site.origins.authority.file))
        login = {"proxy-authorization": aiohttp.encode_basic_auth(f"{AGENT}+{session_name}", site.secret)}
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(
                f"{'https' if scheme == 'wss' else 'http'}://{host}/ws", proxy=f"http://{site.address}", proxy_headers=login,
                headers=login if scheme == "ws" else None, ssl=context, max_msg_size=1 << 26,
            ) as connection,
        ):  # fmt: skip
            for size in (0, 1, 125, 126, 65_536, 3_000_000):
                data = (BLOCK * (size // len(BLOCK) + 1))[:size]
                await connection.send_bytes(data)
                assert await connection.receive_bytes(timeout=20) == data
            await connection.send_str("h\u00e9llo")
            assert await connection.receive_str(timeout=20) == "h\u00e9llo"
        await asyncio.sleep(0.25)  # as aiohttp says: else TLS is left by a reset

    asyncio.run(talk())
    (call,) = site.calls(f"session = '{session_name}'", "action, status, outcome, error, bytes_out, bytes_in")
    wanted = ("http:GET", 101) if scheme == "ws" else ("http:CONNECT", 200)
    assert (call["action"], call["status"], call["outcome"], call["error"]) == (*wanted, "ok", "")
    assert call["bytes_out"] > 3_065_788 < call["bytes_in"]
