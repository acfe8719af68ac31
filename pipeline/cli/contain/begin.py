"""Before a containment: judge everything, write the orders down, and become `outside`.

Whoever stays with the program for as long as it runs is a small process without threads, so this one, which has read the whole
command line, gives way to it: same process id, same parent, same terminal. The orders go into a file in memory; they hold the
credential, which no argument may.
"""

import os
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Final, NoReturn

from pipeline.cli.contain import handles, outside, syscalls, view
from pipeline.cli.proxyenv import Proxy, governed
from schemas.config import Config
from schemas.home import Home
from schemas.vocabulary import shown

HOST: Final = "127.0.0.1"
PORT: Final = 17480
"""Where the relay listens in the new network, in which every port is free."""


def run(
    home: Home, config: Config, command: Sequence[str], *, user: str, secret: str, door: str, bind: Sequence[str],
    ro_bind: Sequence[str], umask: int,
) -> NoReturn:  # fmt: skip
    """Run a program in a containment. Raises OperatorFault for what is not allowed, is not there or would lead out."""
    handles.check_standard()
    cwd = os.getcwd()
    env = governed(os.environ, Proxy(host=HOST, port=PORT), contained=True)
    if env.get("HOME", "").startswith("/"):
        env["HOME"] = os.path.realpath(env["HOME"])  # a link to it is not there inside
    hidden = [home.root, *_key_files(config)]
    steps = view.plan(cwd=cwd, user_home=env.get("HOME", ""), bind=bind, ro_bind=ro_bind, hidden=hidden)
    code = syscalls.program().hex()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, outside.WAITED_FOR)  # it stays blocked in what we become
    plan = {
        "parent": os.getpid(), "host": HOST, "port": PORT, "cwd": cwd, "command": list(command), "umask": umask,
        "env": env, "filter": code, "ignored": _ignored(), "blocked": [int(number) for number in blocked],
        "steps": [[step.what, step.path, step.to] for step in steps],
    }  # fmt: skip
    relay = {"home": str(home.root), "door": door, "user": user, "secret": secret}
    orders = outside.remember({"plan": plan, "relay": relay, "unseen": _unseen(command[0], steps)})
    os.set_inheritable(orders, True)
    sys.stdout.flush()
    words = [sys.executable, "-I", "-m", "pipeline.cli.contain.outside", str(orders)]
    os.execve(sys.executable, words, {})


def _key_files(config: Config) -> list[Path]:
    """The files with secrets that the configuration names, wherever they lie."""
    found = []
    for section in (config.kafka, config.clickhouse, config.control):
        for one in fields(section):
            if one.name.endswith(("password_file", "key_file")) and (name := getattr(section, one.name)):
                found.append(Path(name))
    return found


def _ignored() -> list[int]:
    """The signals that whoever called us has us ignore; Python adds two of its own, which a program does not expect."""
    with open("/proc/self/status") as file:
        mask = next(int(line.split()[1], 16) for line in file if line.startswith("SigIgn:"))
    own = (signal.SIGPIPE, signal.SIGXFSZ)
    return [number for number in range(1, signal.NSIG) if mask >> (number - 1) & 1 and number not in own]


def _unseen(name: str, steps: Sequence[view.Step]) -> str:
    """What to say when there is no such program inside; nothing where it is not outside either."""
    found = shutil.which(name)
    if found is None:
        return ""
    for path in (os.path.abspath(found), os.path.realpath(found)):
        if not view.shows(steps, path):
            return f"is `{shown(path)}`, which is not there inside; give --ro-bind with its folder"
    return "needs an interpreter that is not there inside; give --ro-bind with its folder"
