"""A home whose doors lead to the origins of a test, with one agent in it, and what its programs need to use them.

Everything under `example.test` is permitted to the agent, `closed.test` to nobody, and both are names of the test's own name
server. Where this process may not listen on port 443, tunnels to other ports are permitted as well: else clients of https could
not be tested at all.
"""

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from schemas.process import read_run_file
from tests.support.dns import NameServer, say
from tests.support.home import Wardline, wait_until
from tests.support.origins import ADDRESS, Origins

AGENT: Final = "robot"
NAMES: Final = tuple(f"{name}.example.test" for name in ("www", "git", "pypi", "npm", "ws"))
CLOSED: Final = "closed.test"

POLICY: Final = """
@id("robot-uses-the-site")
permit (principal == Agent::"robot", action in Action::"http", resource in Domain::"example.test");
"""
RAW: Final = """
@id("robot-tunnels-anywhere-there")
permit (principal == Agent::"robot", action == Action::"tcp:CONNECT", resource in Domain::"example.test");
"""


class Governed:
    """`with Governed(folder) as site: site.curl(f"http://{site.http('www')}/echo")`."""

    def __init__(
        self, folder: Path, *, names: Sequence[str] = NAMES, config: str = "", enforcer: str = "", doors: int = 1,
        raw: bool = False,
    ) -> None:  # fmt: skip
        """`config` is added to `[egress]`, `enforcer` to `[enforcer]`; `raw` permits tunnels of any kind to the site."""
        self.folder = folder
        self.names = NameServer()
        self.origins = Origins(folder / "origins", *names, CLOSED, https_port=443)
        self._wanted = names
        self.doors = doors
        self._raw = raw
        text = (
            f'[enforcer]\n{enforcer}\n[egress]\nport = 0\nallow_addresses = ["{ADDRESS}/32"]\n'
            f'dns_servers = ["{self.names.address}"]\n{config}\n'
        )
        self.wardline = Wardline(folder / "home", config=text)
        self.secret = ""

    def __enter__(self) -> "Governed":
        self.names.__enter__()
        self.origins.__enter__()
        for name in (*self._wanted, CLOSED):
            self.names[name] = say(ADDRESS)
        raw = self._raw or not self.origins.https.endswith(":443")
        self.wardline.write_policies(POLICY + (RAW if raw else ""))
        self.wardline.up("--doors", str(self.doors))
        self.secret = self.add_agent(AGENT)
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self.wardline.close()
        self.origins.__exit__(kind, fault, trace)
        self.names.__exit__(kind, fault, trace)

    def add_agent(self, name: str, *words: str) -> str:
        """Add an agent; returns its secret, which every door knows by then."""
        out = self.wardline.run("agent", "add", name, "--owner", "test", *words).stdout.splitlines()
        epoch = int(out[0].partition(" as epoch ")[2].partition(";")[0])
        wait_until(lambda: all(self.door(n).get("epoch", 0) >= epoch for n in range(1, self.doors + 1)), 10,
                   "each door knows the agent")  # fmt: skip
        return out[-1]

    # -- where things are --------------------------------------------------------------------------------------------

    def http(self, name: str) -> str:
        """`NAME.example.test:PORT` of the plain origin."""
        return f"{name}.example.test:{self.origins.http.rpartition(':')[2]}"

    def https(self, name: str) -> str:
        """The same with TLS; without the port where that is 443."""
        port = self.origins.https.rpartition(":")[2]
        return f"{name}.example.test" if port == "443" else f"{name}.example.test:{port}"

    def door(self, number: int = 1) -> dict[str, Any]:
        """What a door says of itself; nothing where it says nothing or does not live."""
        said = read_run_file(self.wardline.home.run_file(f"door-{number}"))
        return said if said is not None and said["alive"] else {}

    @property
    def address(self) -> str:
        """HOST:PORT of the proxy."""
        return str(self.door()["address"])

    def proxy(self, user: str = AGENT, secret: str = "") -> str:
        """The proxy's URL with a credential in it."""
        return f"http://{user}:{secret or self.secret}@{self.address}"

    # -- programs ----------------------------------------------------------------------------------------------------

    def run(
        self, *words: str, proxy: str | None = None, more: Mapping[str, str] | None = None, check: bool = True,
        cwd: Path | None = None, timeout: float = 120,
    ) -> "subprocess.CompletedProcess[str]":  # fmt: skip
        """Run a program with the usual variables set to the door and nothing of the machine's own settings."""
        url = self.proxy() if proxy is None else proxy
        home = self.folder / "user"
        home.mkdir(exist_ok=True)
        env = {
            "PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", "NO_PROXY": "", "no_proxy": "",
            "http_proxy": url, "https_proxy": url, "HTTPS_PROXY": url, "HTTP_PROXY": url,
            "SSL_CERT_FILE": str(self.origins.authority.file), "CURL_CA_BUNDLE": str(self.origins.authority.file),
            "GIT_SSL_CAINFO": str(self.origins.authority.file), "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0",
            **(more or {}),
        }  # fmt: skip
        done = subprocess.run(
            words, env=env, cwd=cwd or home, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=timeout,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, f"{words} -> {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done

    def curl(self, url: str, *words: str, check: bool = True, **more: Any) -> "subprocess.CompletedProcess[str]":
        """curl, quiet, with the door as its proxy; fails for a status from 400 on only when it is asked to (`-f`)."""
        return self.run("curl", "-sS", "--max-time", "60", *words, url, check=check, **more)

    # -- the record --------------------------------------------------------------------------------------------------

    def calls(self, where: str, columns: str = "*", *, count: int = 1, within_s: float = 30) -> list[dict[str, Any]]:
        """Rows of the view `calls`, as soon as there are `count` that are not open any more."""
        names = columns.split(", ") if columns != "*" else [row[0] for row in self.wardline.sql("DESCRIBE calls")]
        deadline = time.monotonic() + within_s
        while True:
            rows = self.wardline.sql(f"SELECT {columns} FROM calls WHERE {where} AND outcome != '' ORDER BY call_id")
            if len(rows) >= count:
                assert len(rows) == count, rows
                return [dict(zip(names, row, strict=True)) for row in rows]
            assert time.monotonic() < deadline, f"{len(rows)} of {count} calls: {where}"
            time.sleep(0.2)


def refusal_of(text: str) -> dict[str, Any]:
    """The body of a refusal, checked for what each has."""
    said: dict[str, Any] = json.loads(text)
    assert said.keys() == {"call_id", "policy", "reason", "message", "ask", "agent", "action", "resource"}
    return said
