"""Real programs in a containment, through the door of a real home: what works, what is recorded, and what a revocation cuts."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.contained import NO_NAMESPACES, NO_PROGRAM, Ground, can_contain
from tests.support.governed import AGENT, CLOSED, Governed, refusal_of
from tests.support.home import wait_until
from tests.support.origins import digest_of_bytes

pytestmark = pytest.mark.skipif(not can_contain(), reason=NO_NAMESPACES)

UPGRADE = """
import os, socket, sys
host = sys.argv[1]
with socket.create_connection(("127.0.0.1", 17480), 20) as one:
    one.sendall((f"GET http://{host}/ws HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n"
                 "Sec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\n\\r\\n").encode())
    said = b""
    while b"\\r\\n\\r\\n" not in said:
        said += one.recv(1)
    print(said.split()[1].decode())
    one.sendall(b"\\x82\\x85\\0\\0\\0\\0hello")
    print(one.recv(16))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Governed]:
    with Governed(tmp_path_factory.mktemp("contained"), doors=2) as made:
        made.wardline.run("agent", "rotate", AGENT, "--keep")
        (made.folder / "inside").mkdir()
        shutil.copy(made.origins.authority.file, made.folder / "inside" / "ca.pem")
        yield made


def contained(site: Governed, *words: str, options: tuple[str, ...] = (), check: bool = True,
              more: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":  # fmt: skip
    """Run a program inside, in a folder that holds the authority of the test's sites."""
    files = dict.fromkeys(("SSL_CERT_FILE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS"), "ca.pem")
    line = site.wardline.words("run", "--as", AGENT, "--contain", *options, "--", *words)
    return site.run(*line, proxy="http://nowhere.invalid:1", more=files | (more or {}), check=check, cwd=site.folder / "inside")


def test_a_plain_run_finds_the_credential_that_was_kept(site: Governed) -> None:
    words = ("--session", "plain", "--", "curl", "-sSf", "-o", "/dev/null", f"http://{site.http('www')}/bytes/9")
    site.run(*site.wardline.words("run", "--as", AGENT, *words), proxy="http://nowhere.invalid:1")
    (call,) = site.calls("session = 'plain'", "agent, outcome, status")
    assert call == {"agent": AGENT, "outcome": "ok", "status": 200}
    assert os.stat(site.wardline.home.agent_secrets / f"{AGENT}.secret").st_mode & 0o777 == 0o600


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_curl_gets_every_byte(site: Governed, scheme: str) -> None:
    host = site.https("www") if scheme == "https" else site.http("www")
    script = f"curl -sSf {scheme}://{host}/bytes/50000000 | sha256sum"
    done = contained(site, "sh", "-c", script, options=("--session", f"curl-{scheme}"))
    assert done.stdout.split()[0] == digest_of_bytes(50_000_000)
    (call,) = site.calls(f"session = 'curl-{scheme}'", "agent, action, outcome, bytes_in")
    assert (call["agent"], call["action"]) == (AGENT, "http:GET" if scheme == "http" else "http:CONNECT")
    assert (call["outcome"], call["bytes_in"] >= 50_000_000) == ("ok", True)


def test_curl_sends_several_requests_in_one_run(site: Governed) -> None:
    url = f"http://{site.http('www')}/echo"
    done = contained(site, "curl", "-sS", "-d", "one", url, "-d", "two", url, options=("--session", "several"))
    assert done.stdout == "one&twoone&two"
    assert len(site.calls("session = 'several'", "outcome", count=2)) == 2


def test_a_refused_call_says_why(site: Governed) -> None:
    done = contained(site, "curl", "-sS", f"http://{CLOSED}/")
    assert refusal_of(done.stdout)["reason"] == "no-permit"
    done = contained(site, "curl", "-sS", "-o", "/dev/null", "-w", "%{http_connect}", f"https://{CLOSED}/", check=False)
    assert (done.returncode, done.stdout) == (56, "403")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_git_clones(site: Governed, scheme: str) -> None:
    work, bare = site.folder / f"work-{scheme}", site.origins.folder / "git" / f"{scheme}.git"
    who = {f"GIT_{one}_{what}": "t@example.test" for one in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    work.mkdir()
    (work / "file").write_bytes(os.urandom(100_000))
    for words in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "one"), ("clone", "-q", "--bare", ".", str(bare))):
        site.run("git", *words, more=who, proxy="", cwd=work)
    host = site.https("git") if scheme == "https" else site.http("git")
    contained(site, "git", "clone", "-q", f"{scheme}://{host}/git/{scheme}.git", options=("--session", f"git-{scheme}"))
    assert (site.folder / "inside" / scheme / "file").read_bytes() == (work / "file").read_bytes()
    calls = site.calls(f"session = 'git-{scheme}'", "outcome", count=3 if scheme == "http" else 1)
    assert {call["outcome"] for call in calls} == {"ok"}


def test_python_reads_a_site(site: Governed) -> None:
    code = "import sys, urllib.request; [print(len(urllib.request.urlopen(url).read())) for url in sys.argv[1:]]"
    urls = [f"http://{site.http('www')}/bytes/100000", f"https://{site.https('www')}/bytes/100000"]
    python, seen = Ground.python_inside()
    done = contained(site, python, "-c", code, *urls, options=tuple(seen))
    assert done.stdout.split() == ["100000", "100000"]


def test_a_websocket_goes_through_the_relay(site: Governed) -> None:
    python, seen = Ground.python_inside()
    done = contained(site, python, "-c", UPGRADE, site.http("ws"), options=(*seen, "--session", "ws"))
    assert done.stdout.splitlines() == ["101", "b'\\x82\\x05hello'"]
    (call,) = site.calls("session = 'ws'", "status, outcome")
    assert call["status"] == 101


@pytest.mark.skipif(not shutil.which("npm"), reason=f"{NO_PROGRAM}: npm")
def test_node_reads_a_registry(site: Governed) -> None:
    """npm is a program of node's; node itself reads proxy variables from its version 22.21 on."""
    host = site.https("npm")
    version = {"name": "small", "version": "1.2.3", "dist": {"tarball": f"https://{host}/t.tgz"}}
    said = {"name": "small", "dist-tags": {"latest": "1.2.3"}, "versions": {"1.2.3": version}}
    (site.origins.folder / "www" / "small").write_text(json.dumps(said))
    settings = {"npm_config_registry": f"https://{host}/", "npm_config_cafile": "ca.pem", "npm_config_update_notifier": "false"}
    done = contained(site, "npm", "view", "small", "--json", more=settings)
    assert json.loads(done.stdout)["version"] == "1.2.3"


def test_a_revoked_session_is_cut_off_inside(site: Governed) -> None:
    url = f"https://{site.https('www')}/bytes/100000000000"
    line = site.wardline.words("run", "--as", AGENT, "--session", "endless", "--contain", "--",
                               "curl", "-sS", "--limit-rate", "1M", "--cacert", "ca.pem", "-o", "/dev/null", url)  # fmt: skip
    env = {"PATH": os.environ["PATH"], "HOME": str(site.folder / "user")}
    with subprocess.Popen(line, cwd=site.folder / "inside", env=env, stdin=subprocess.DEVNULL) as process:
        wait_until(lambda: site.wardline.sql("SELECT count() FROM calls WHERE session = 'endless'")[0][0], 30, "it is a call")
        site.wardline.run("revoke", "session", "endless", "--reason", "a test")
        assert process.wait(10) in (18, 56), "it ends in the middle, one way or the other"
    (call,) = site.calls("session = 'endless'", "outcome, reason, error")
    assert call == {"outcome": "refused", "reason": "revoked", "error": "revoked while open"}
    done = contained(site, "curl", "-sS", f"http://{site.http('www')}/echo", options=("--session", "endless"))
    assert refusal_of(done.stdout)["reason"] == "revoked"


def test_a_killed_door_is_not_the_end_of_a_run(site: Governed) -> None:
    script = (
        "touch begun; while [ ! -e killed ]; do sleep 0.05; done; "
        f"for n in 1 2 3 4 5 6 7 8; do curl -s -o /dev/null -w '%{{http_code}} ' http://{site.http('www')}/bytes/10; done"
    )
    work = site.folder / "inside"
    line = site.wardline.words("run", "--as", AGENT, "--contain", "--", "sh", "-c", script)
    env = {"PATH": os.environ["PATH"], "HOME": str(site.folder / "user")}
    with subprocess.Popen(line, cwd=work, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        wait_until((work / "begun").exists, 30, "it runs")
        site.wardline.kill("door-1")
        (work / "killed").touch()
        out, _ = process.communicate(timeout=60)
    assert out.split() == ["200"] * 8


def test_the_home_that_was_used_has_no_trace_of_the_credential(site: Governed) -> None:
    """It is in its one file, and in no log, run file or record."""
    secret = (site.wardline.home.agent_secrets / f"{AGENT}.secret").read_text().strip()
    found = []
    for path in site.wardline.home.root.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # the home lives
            if path.is_file() and not path.is_symlink() and secret.encode() in Path(path).read_bytes():
                found.append(path.name)
    assert found == [f"{AGENT}.secret"]
