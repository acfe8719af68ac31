"""The demo's agents as processes: each by `wardline run`, contained where this machine lets us, its lines told as they come."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeAlias

from pipeline.cli.contain import view
from pipeline.cli.demo import agent
from schemas.home import Home

COMMAND: Final = (sys.executable, "-P", "-m", "pipeline.cli.main")
KEPT: Final = ("PATH", "LANG", "LC_ALL", "TMPDIR", "HOME")
"""What of our environment an agent gets."""

NOT_CONTAINED: Final = "wardline: --contain: "
WORK_S: Final = 60.0
"""How long an agent may take for its work."""

Told: TypeAlias = Callable[[Mapping[str, Any]], None]


class Company:
    """Starts agents in working folders of their own. At its end none of them lives, and the folders are gone."""

    def __init__(self, home: Home, port: int) -> None:
        self.uncontained = ""
        """Why no containment can be made here; empty as long as they can."""
        self._home = home
        self._port = port
        self._top = Path(tempfile.mkdtemp(prefix="wardline-agents-"))
        self._alive: list[subprocess.Popen[str]] = []

    def __enter__(self) -> "Company":
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        for process in self._alive:
            process.kill()
            process.wait()
        shutil.rmtree(self._top, ignore_errors=True)

    def folder(self, name: str) -> Path:
        """Where an agent works."""
        made = self._top / name
        if not made.exists():
            made.mkdir(mode=0o700)
            shutil.copy(agent.__file__, made / "agent.py")
        return made

    def play(self, role: str, name: str, token: str, *, door: str, told: Told, trace: str = "", contain: bool = True) -> int:
        """Have an agent play a role to its end, through one door; returns its exit code. Raises TimeoutExpired.

        Where no containment can be made the agent is told of as `uncontained`, with the reason, and plays without one.
        """
        contained = contain and not self.uncontained
        process = subprocess.Popen(
            self._words("agent.py", role, str(self._port), name=name, door=door, contain=contained),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.folder(name),
            env=self._environment(token, TRACEPARENT=trace),
        )  # fmt: skip
        self._alive.append(process)
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                if contained and line.startswith(NOT_CONTAINED):
                    self.uncontained = line.removeprefix(NOT_CONTAINED).strip()
                else:
                    told(_parse(line))
        code = process.wait(WORK_S)
        self._alive.remove(process)
        if contained and self.uncontained:
            told({"does": "uncontained", "where": self.uncontained})
            return self.play(role, name, token, door=door, told=told, trace=trace)
        return code

    def _words(self, *words: str, name: str, door: str, contain: bool) -> list[str]:
        python, base = os.path.realpath(sys.executable), os.path.realpath(sys.base_prefix)
        options = ["--door", door] if door else []
        if contain:
            seen = any(base == one or base.startswith(f"{one}/") for one in view.SYSTEM)
            options += ["--contain", *([] if seen else ["--ro-bind", base])]
        run = ["run", "--home", str(self._home.root), "--as", name, *options]
        return [*COMMAND, *run, "--", python, "-I", "-S", "-B", *words]

    def _environment(self, token: str, **more: str) -> dict[str, str]:
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        given = {name: value for name, value in more.items() if value}
        return kept | given | {"WARDLINE_CREDENTIAL": token, "WARDLINE_PARENT": str(os.getpid())}


def _parse(line: str) -> dict[str, Any]:
    """What an agent says; a line that is none of its own is a complaint of Python or of `wardline run`."""
    with contextlib.suppress(ValueError):
        said = json.loads(line)
        if isinstance(said, dict):
            return said
    return {"does": "complains", "where": line.rstrip()}
