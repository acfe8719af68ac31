"""A home in a temporary folder with real processes in it, started by the real command line.

    with Wardline(tmp_path / "home") as home:
        home.start_all()
        home.replay(calls)
        assert home.sql("SELECT count() FROM calls") == [(7,)]

`start` runs one process alone; `up` runs `wardline up`, which starts again what `kill` kills. Whatever lives at the end is
killed, and everything leaves when the test run itself dies.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import clickhouse_connect

from schemas.config import load_config
from schemas.home import Home
from schemas.links import store_link
from schemas.process import is_alive, read_run_file

COMMAND = [sys.executable, "-P", "-m", "pipeline.cli.main"]
READY_S = 60.0


def wait_until(what: Callable[[], Any], seconds: float, why: str | Callable[[], str], *, every: float = 0.05) -> Any:
    """Poll until `what` is true and return it, or fail saying `why` (when it is a function: as it is by then)."""
    deadline = time.monotonic() + seconds
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {why if isinstance(why, str) else why()}"
        time.sleep(every)


class Wardline:
    """One home and its processes. `kafka` and `clickhouse` are passed to every command that takes them."""

    def __init__(self, root: Path, *, kafka: str = "", clickhouse: str = "", config: str = "") -> None:
        """`config` is the text of `wardline.toml`; the home is made, empty of policies."""
        self.home = Home(root)
        self.kafka = kafka
        self.clickhouse = clickhouse
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if config:
            self.home.config.write_text(config)

    # -- commands ----------------------------------------------------------------------------------------------------

    def words(self, command: str, *words: str) -> list[str]:
        """A whole command line: with `--home`, and the servers where the command takes them."""
        servers = []
        if self.kafka and command in ("up", "control", "work", "enforce", "replay"):
            servers += ["--kafka", self.kafka]
        if self.clickhouse and command in ("up", "work", "replay", "sql", "deadletter"):
            servers += ["--clickhouse", self.clickhouse]
        return [*COMMAND, command, "--home", str(self.home.root), *servers, *words]

    def run(self, command: str, *words: str, timeout: float = 120, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end; with `check`, exit code 0 or the test fails with what it printed."""
        done = subprocess.run(
            self.words(command, *words), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False,
            env=self._environment(),
        )  # fmt: skip
        if check:
            assert done.returncode == 0, f"{command} {words} -> {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done

    def popen(self, command: str, *words: str, log: str = "") -> "subprocess.Popen[bytes]":
        """Start a command in a session of its own; it prints to `log/LOG.log` (default: the command's name)."""
        self.home.log.mkdir(mode=0o700, exist_ok=True)
        with (self.home.log / f"{log or command}.log").open("ab") as out:
            process = subprocess.Popen(
                self.words(command, *words), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
                env=self._environment(),
            )  # fmt: skip
        self._started[log or command] = process
        return process

    def _environment(self) -> dict[str, str]:
        return os.environ | {"WARDLINE_PARENT": str(os.getpid())}

    def status(self) -> dict[str, Any]:
        """`wardline status --json`."""
        return dict(json.loads(self.run("status", "--json", check=False).stdout))

    def sql(self, query: str, *, user: str = "reader") -> list[tuple[Any, ...]]:
        """Ask the store as a client of ours would."""
        config = load_config(self.home.config)
        if self.clickhouse:
            config = dataclasses.replace(config, clickhouse=dataclasses.replace(config.clickhouse, url=self.clickhouse))
        link = store_link(self.home, config, user)
        with clickhouse_connect.get_client(**link.options(), database=link.database) as client:
            return [tuple(row) for row in client.query(query).result_rows]

    def replay(self, file: Path, *words: str, timeout: float = 600, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Feed a recorded-calls file; returns when everything is stored."""
        return self.run("replay", str(file), *words, timeout=timeout, check=check)

    def write_policies(self, text: str, name: str = "policy.cedar") -> None:
        """Put a policy file into the home."""
        self.home.policies.mkdir(mode=0o700, exist_ok=True)
        (self.home.policies / name).write_text(text)

    # -- processes ---------------------------------------------------------------------------------------------------

    def start(self, name: str, *words: str, wait: bool = True) -> int:
        """Start one process alone, `broker`, `store`, `control`, `work-N` or `enforce-N`; returns its pid when it is ready.

        A host has egress doors only when `words` say how many, then on a free port if they name none.
        """
        kind, _, number = name.partition("-")
        if kind == "enforce" and "--doors" not in words:
            words = (*words, "--doors", "0")
        elif kind == "enforce" and "--egress-port" not in words:
            words = (*words, "--egress-port", "0")
        process = self.popen(kind, *(["--slot", number] if number else []), *words, log=name)
        if wait:
            self.wait_ready(name, process)
        return process.pid

    def start_all(self, *, workers: int = 1, enforcers: int = 1, doors: int = 0) -> None:
        """Start what `up` would, each alone and nobody to start it again; each enforcer with `doors` egress doors."""
        names = ([] if self.kafka else ["broker"]) + ([] if self.clickhouse else ["store"])
        stages = [
            names, ["control"], [f"work-{n + 1}" for n in range(workers)], [f"enforce-{n + 1}" for n in range(enforcers)],
        ]  # fmt: skip
        for stage in stages:
            for name in stage:
                self.start(name, *(["--doors", str(doors)] if name.startswith("enforce-") else []), wait=False)
            for name in stage:
                self.wait_ready(name, self._started[name])

    def up(self, *words: str, wait: bool = True) -> "subprocess.Popen[bytes]":
        """`wardline up` on free ports; returns when everything is ready."""
        process = self.popen("up", "--port-base", "0", *words)
        if wait:
            path = self.home.run_file("up")
            wait_until(
                lambda: process.poll() is not None or _is_ready(read_run_file(path), process.pid),
                READY_S, lambda: f"up is ready; it said {self.said('up')}",
            )  # fmt: skip
            assert process.poll() is None, f"up ended with {process.returncode}: {self.said('up')}"
        return process

    def wait_ready(self, name: str, process: "subprocess.Popen[bytes] | None" = None, seconds: float = READY_S) -> int:
        """Wait until a process says that it is ready; returns its pid."""

        def look() -> int:
            if process is not None and process.poll() is not None:
                raise AssertionError(f"{name} ended with {process.returncode}: {self.said(name)}")
            said = read_run_file(self.home.run_file(name))
            fits = said is not None and said["alive"] and said.get("state") == "ready"
            return int(said["pid"]) if fits and said and (process is None or said["pid"] == process.pid) else 0

        return int(wait_until(look, seconds, lambda: f"{name} is ready; it said {self.said(name)}"))

    def pid(self, name: str) -> int:
        """The pid that a living process says is its own."""
        said = read_run_file(self.home.run_file(name))
        assert (said or {}).get("alive"), f"{name} does not live: {self.said(name)}"
        assert said is not None
        return int(said["pid"])

    def said(self, name: str) -> str:
        """The end of what a process printed."""
        try:
            return (self.home.log / f"{name}.log").read_text(errors="replace")[-2000:]
        except OSError:
            return ""

    def _gone(self, name: str, pid: int, seconds: float) -> None:
        process = self._started.get(name)
        if process is not None and process.pid == pid:
            process.wait(seconds)
            del self._started[name]
        else:
            wait_until(lambda: not is_alive(pid), seconds, f"{name} ({pid}) is gone")

    def kill(self, name: str) -> int:
        """kill -9; returns the pid that is gone."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        self._gone(name, pid, 20)
        return pid

    def stop(self, name: str, seconds: float = 60, number: int = signal.SIGTERM) -> int:
        """End a process in an orderly way; returns its exit code when it is ours to know, else 0."""
        pid = self.pid(name)
        process = self._started.get(name)
        os.kill(pid, number)
        self._gone(name, pid, seconds)
        return process.returncode if process is not None and process.pid == pid else 0

    def sigstop(self, name: str) -> int:
        """Stop a process where it is; returns its pid."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGSTOP)
        return pid

    def sigcont(self, name: str) -> None:
        """Let it go on."""
        os.kill(self.pid(name), signal.SIGCONT)

    def wait_stored(self, seconds: float = 60) -> None:
        """Wait until every record of every living host is stored and nothing waits in an outbox."""

        def look() -> bool:
            hosts = [f for f in self.home.run.glob("*.json") if f.name.startswith(("enforce-", "replay-"))]
            figures: list[dict[str, Any]] = []
            for said in (read_run_file(f) for f in hosts):
                if said is not None and said["alive"]:
                    figures += [said, *dict(said.get("adopted") or {}).values()]
            return bool(figures) and all(f.get("spooled", -1) == f.get("stored") for f in figures)

        wait_until(look, seconds, "everything is stored")

    def close(self) -> None:
        """Kill whatever lives, `up` first so that nothing comes back."""
        for process in sorted(self._started.values(), key=lambda p: p is not self._started.get("up")):
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)
        self._started.clear()
        living = [said for f in self.home.run.glob("*.json") if (said := read_run_file(f)) and said["alive"]]
        for said in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(said["pid"]), signal.SIGCONT)
                os.kill(int(said["pid"]), signal.SIGKILL)
        for said in living:
            wait_until(lambda pid=said["pid"]: not is_alive(int(pid)), 10, f"{said['name']} is gone")

    def __enter__(self) -> "Wardline":
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _is_ready(said: dict[str, Any] | None, pid: int) -> bool:
    """Whether it is this process that says so, and not one before it that was killed."""
    return said is not None and said["pid"] == pid and said["state"] == "ready"


def names(processes: Sequence[dict[str, Any]]) -> list[str]:
    """The names in a status."""
    return [str(process["name"]) for process in processes]
