"""The recipe for a whole host, in network namespaces: one is the host, another all that lies beyond it."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.contained import NO_NFT
from tests.support.data import REPOSITORY

DOOR, AGENT, SECOND_AGENT, STRANGER = 54_331, 54_332, 54_333, 54_334
PORT = 17_480
HERE = Path(__file__).parents[1] / "support" / "reach.py"


def can_filter() -> bool:
    return os.geteuid() == 0 and all(shutil.which(name) for name in ("nft", "ip")) and _works()


def _works() -> bool:
    done = subprocess.run(["unshare", "-n", "nft", "add table inet t"], capture_output=True, check=False)
    return done.returncode == 0


pytestmark = pytest.mark.skipif(not can_filter(), reason=NO_NFT)


class Hosts:
    """Two network namespaces with a wire between them, and answering servers in both."""

    def __init__(self) -> None:
        self.here, self.beyond = f"wl{os.getpid()}h", f"wl{os.getpid()}b"
        self._servers: list[subprocess.Popen[bytes]] = []

    def open(self) -> None:
        for name in (self.here, self.beyond):
            ip("netns", "add", name)
            self.ip(name, "link", "set", "lo", "up")
        self.ip(self.here, "link", "add", "out", "type", "veth", "peer", "name", "in", "netns", self.beyond)
        for name, link, number in ((self.here, "out", 1), (self.beyond, "in", 2)):
            self.ip(name, "addr", "add", f"192.0.2.{number}/24", "dev", link)
            self.ip(name, "addr", "add", f"2001:db8::{number}/64", "dev", link, "nodad")
            self.ip(name, "link", "set", link, "up")
        self.serve(self.beyond, 0, "tcp:192.0.2.2:80", "tcp:192.0.2.2:17480", "udp:192.0.2.2:53", "udp:192.0.2.2:443",
                   "tcp:2001:db8::2:80", "udp:2001:db8::2:53")  # fmt: skip
        self.serve(self.here, DOOR, f"tcp:127.0.0.1:{PORT}", f"tcp:::1:{PORT}", f"udp:127.0.0.1:{PORT}")
        self.serve(self.here, STRANGER, "tcp:127.0.0.1:9999", "tcp:::1:9999", "udp:127.0.0.1:9999")
        self.serve(self.here, AGENT, "tcp:192.0.2.1:8000", "udp:192.0.2.1:8000")

    @staticmethod
    def ip(name: str, *words: str) -> None:
        ip("-n", name, *words)

    def serve(self, name: str, uid: int, *where: str) -> None:
        words = ["ip", "netns", "exec", name, sys.executable, str(HERE), str(uid), "serve", *where]
        process = subprocess.Popen(words, stdout=subprocess.PIPE)
        self._servers.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"

    def reach(self, uid: int, *where: str, of: str = "") -> dict[str, str]:
        """What becomes of a word to each server, as a user: `answered`, or the error."""
        words = ["ip", "netns", "exec", of or self.here, sys.executable, str(HERE), str(uid), "reach", *where]
        return dict(json.loads(subprocess.run(words, capture_output=True, check=True, timeout=60).stdout))

    def load(self, **defines: str) -> None:
        text = (REPOSITORY / "deploy" / "nftables" / "wardline.nft").read_text()
        for name, value in defines.items():
            text, count = re.subn(rf"^define {name} = .*$", f"define {name} = {value}", text, flags=re.MULTILINE)
            assert count == 1, name
        subprocess.run(["ip", "netns", "exec", self.here, "nft", "-f", "-"], input=text.encode(), check=True)

    def close(self) -> None:
        for process in self._servers:
            process.kill()
            process.communicate()
        for name in (self.here, self.beyond):
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


BEYOND = ("tcp:192.0.2.2:80", "tcp:192.0.2.2:17480", "udp:192.0.2.2:53", "udp:192.0.2.2:443", "tcp:2001:db8::2:80",
          "udp:2001:db8::2:53")  # fmt: skip
LOCAL = ("tcp:127.0.0.1:9999", "tcp:::1:9999", "udp:127.0.0.1:9999", f"tcp:::1:{PORT}", f"udp:127.0.0.1:{PORT}")
DOORS = (f"tcp:127.0.0.1:{PORT}",)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    made = Hosts()
    try:
        made.open()
        yield made
    finally:
        made.close()


def answers(*where: str) -> dict[str, str]:
    return dict.fromkeys(where, "answered")


def test_the_recipe_keeps_agents_from_everything_but_the_door(hosts: Hosts) -> None:
    for uid in (AGENT, SECOND_AGENT, STRANGER, DOOR):
        assert hosts.reach(uid, *BEYOND, *LOCAL, *DOORS) == answers(*BEYOND, *LOCAL, *DOORS), "what nothing keeps is open"
    assert hosts.reach(0, "tcp:192.0.2.1:8000", "udp:192.0.2.1:8000", of=hosts.beyond) == answers(
        "tcp:192.0.2.1:8000", "udp:192.0.2.1:8000"
    )

    hosts.load(door=str(DOOR), agents=f"{{ {AGENT}, {SECOND_AGENT} }}", others="{ root }", door_port=str(PORT))

    for uid in (AGENT, SECOND_AGENT):
        assert hosts.reach(uid, *DOORS) == answers(*DOORS)
        begun = time.monotonic()
        kept = hosts.reach(uid, *BEYOND, *LOCAL)
        assert "answered" not in kept.values(), kept
        assert time.monotonic() - begun < 10, "a refusal is told, nobody waits for it"
    assert hosts.reach(DOOR, *BEYOND, *LOCAL, *DOORS) == answers(*BEYOND, *LOCAL, *DOORS)
    assert hosts.reach(0, *BEYOND, *LOCAL) == answers(*BEYOND, *LOCAL)
    assert hosts.reach(STRANGER, *LOCAL, *DOORS) == answers(*LOCAL, *DOORS), "a user who is no agent has the host's loopback"
    assert "answered" not in hosts.reach(STRANGER, *BEYOND).values()


def test_an_agent_cannot_be_called_from_beyond(hosts: Hosts) -> None:
    hosts.load(door=str(DOOR), agents=f"{{ {AGENT} }}", others="{ root }", door_port=str(PORT))
    called = hosts.reach(0, "tcp:192.0.2.1:8000", "udp:192.0.2.1:8000", of=hosts.beyond)
    assert "answered" not in called.values(), called


def test_the_recipe_can_be_loaded_again(hosts: Hosts) -> None:
    for agents in (f"{{ {AGENT} }}", f"{{ {SECOND_AGENT} }}"):
        hosts.load(door=str(DOOR), agents=agents, others="{ root }", door_port=str(PORT))
    assert "answered" not in hosts.reach(SECOND_AGENT, *BEYOND).values()
    assert hosts.reach(AGENT, "tcp:127.0.0.1:9999") == answers("tcp:127.0.0.1:9999"), "the first list is gone"
