"""A host and its doors: in which order they stop, what a wrong setting does, and that clients find the port again."""

import socket
import subprocess
import time
from pathlib import Path

from schemas.process import is_alive, read_run_file
from tests.support.governed import AGENT, Governed
from tests.support.home import Wardline, wait_until


def test_a_call_that_is_out_ends_before_its_host_stops_and_is_stored(tmp_path: Path) -> None:
    with Governed(tmp_path) as site:
        url = f"http://{site.http('www')}/hold?stop"
        with subprocess.Popen(
            ["curl", "-sS", "-x", site.proxy(f"{AGENT}+stop"), url], stdout=subprocess.PIPE, text=True
        ) as client:
            wait_until(lambda: site.origins.held == 1, 20, "the call is at the origin")
            pids = [site.wardline.pid(name) for name in ("door-1", "enforce-1")]
            address = site.address
            up = site.wardline.pid("up")
            subprocess.run(["kill", "-TERM", str(up)], check=True)
            wait_until(lambda: not accepts(address), 5, "the door accepts nothing more")
            assert all(is_alive(pid) for pid in pids)
            assert client.poll() is None
            site.origins.release()
            assert client.communicate(timeout=20)[0] == "held\n"
        wait_until(lambda: not any(is_alive(pid) for pid in (*pids, up)), 60, "all is stopped")
        assert list(site.wardline.home.run.glob("*.json")) == []
        site.wardline.start("store")
        rows = site.wardline.sql("SELECT outcome, status FROM calls WHERE session = 'stop'")
        assert rows == [("ok", 200)]
        assert site.wardline.sql("SELECT count() FROM gaps") == [(0,)]


def accepts(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def test_a_call_that_does_not_end_is_cut_when_its_time_to_stop_is_over(tmp_path: Path) -> None:
    with Governed(tmp_path, config="stop_ms = 500") as site:
        url = f"http://{site.http('www')}/hold?cut"
        with subprocess.Popen(
            ["curl", "-sS", "-m", "60", "-w", " %{http_code}", "-x", site.proxy(f"{AGENT}+cut"), url], stdout=subprocess.PIPE,
            text=True,
        ) as client:  # fmt: skip
            wait_until(lambda: site.origins.held == 1, 20, "the call is at the origin")
            begun = time.monotonic()
            assert site.wardline.stop("up") == 0
            said = client.communicate(timeout=20)[0]
        assert time.monotonic() - begun < 20
        site.wardline.start("store")
        (row,) = site.wardline.sql("SELECT verdict, outcome, error FROM calls WHERE session = 'cut'")
        assert row[:2] == ("allow", "error"), (row, said)
        assert said.endswith(" 503"), (row, said)


def test_a_door_that_cannot_start_is_named_by_status_and_starts_when_it_can(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    config = f'[[issuer]]\nurl = "https://idp.example"\naudience = "us"\njwks_file = "{keys}"\n'
    with Wardline(tmp_path / "home", config=config) as home:
        up = home.up(wait=False)
        said = home.home.run_file("up")
        wait_until(lambda: up.poll() is not None or (read_run_file(said) or {}).get("state") == "ready", 60, "up")
        assert up.poll() is None, home.said("up")
        status = home.status()
        assert not status["ready"]
        (why,) = [line for line in status["blocked"] if line.startswith("door-1: ")]
        assert str(keys) in why
        assert str(keys) in home.said("up"), "up says so where it prints the addresses"
        keys.write_text('{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}')
        assert home.run("status", "--wait", "30").returncode == 0
        assert not [line for line in home.status()["blocked"] if line.startswith("door-1")]


def test_a_host_alone_whose_port_is_taken_says_so_and_ends(wardline: Wardline) -> None:
    wardline.start("broker")
    wardline.start("control")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = wardline.run("enforce", "--slot", "1", "--doors", "1", "--egress-port", str(port), check=False)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"wardline: egress.port: {port} of 127.0.0.1 cannot be taken: address already in use; ")
    assert "--egress-port" in last


def test_doors_leave_within_two_seconds_of_their_host(tmp_path: Path) -> None:
    with Wardline(tmp_path / "home") as home:
        home.start("broker")
        home.start("control")
        home.start("enforce-1", "--doors", "2")
        pids = [home.pid(name) for name in ("door-1", "door-2")]
        children = [int(pid) for pid in subprocess.run(
            ["pgrep", "-P", str(home.pid("enforce-1"))], capture_output=True, text=True, check=True
        ).stdout.split()]  # fmt: skip
        assert set(pids) <= set(children)
        home.kill("enforce-1")
        died = time.monotonic()
        wait_until(lambda: not any(is_alive(pid) for pid in children), 10, "the doors are gone, and the spare one")
        assert time.monotonic() - died < 2.5
