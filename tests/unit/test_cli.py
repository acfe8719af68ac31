"""The command line as a user meets it: homes, overrides, one-line errors, and what a supervisor does with its children."""

import argparse
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import status, supervise, up
from pipeline.cli.common import add_clickhouse, add_kafka, called_as, config_of, home_of, home_option, home_words, open_home
from pipeline.cli.main import main
from pipeline.cli.processes import port, slot
from pipeline.cli.supervise import Child, Supervisor
from schemas import process
from schemas.config import Config
from schemas.errors import OperatorFault
from schemas.home import Home
from schemas.process import Lock, is_alive, last_line, read_run_file, rotate, write_run_file


@pytest.fixture(autouse=True)
def no_home_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test reads or writes the home of whoever runs it."""
    monkeypatch.delenv("WARDLINE_HOME", raising=False)
    monkeypatch.delenv("WARDLINE_PARENT", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(parents=[home_option()])
    add_kafka(parser)
    add_clickhouse(parser)
    return parser.parse_args(words)


# -- the home ------------------------------------------------------------------------------------------------------------


def test_the_home_is_the_option_or_the_variable_or_the_users_state_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert home_of(parse()).root == tmp_path / "state" / "wardline"
    monkeypatch.setenv("WARDLINE_HOME", str(tmp_path / "variable"))
    assert home_of(parse()).root == tmp_path / "variable"
    assert home_of(parse("--home", str(tmp_path / "option"))).root == tmp_path / "option"
    monkeypatch.delenv("WARDLINE_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", "relative is not allowed by the standard")
    assert home_of(parse()).root == Path.home() / ".local" / "state" / "wardline"


def test_a_new_home_and_an_empty_folder_become_private(tmp_path: Path) -> None:
    made, empty = tmp_path / "a" / "b", tmp_path / "empty"
    empty.mkdir(mode=0o755)
    for root in (made, empty):
        open_home(Home(root))
        assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_a_folder_with_something_in_it_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    tmp_path.chmod(0o755)
    open_home(Home(tmp_path))
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    assert status.unsafe(Home(tmp_path), Config())[0] == f"{tmp_path}: mode is 0755, must be 0700"


def test_a_home_that_is_a_file_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(OperatorFault, match="file: cannot be the home: not a directory"):
        open_home(Home(file))


def test_commands_to_copy_name_the_home_only_where_a_plain_call_would_miss_it(tmp_path: Path) -> None:
    assert home_words(Home(tmp_path / "state" / "wardline")) == ""
    assert home_words(Home(tmp_path / "an other")) == f" --home '{tmp_path}/an other'"


def test_the_command_to_copy_is_the_one_that_was_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "bin" / "wardline"
    own.parent.mkdir()
    own.touch(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(own)])
    assert called_as() == "bin/wardline"
    monkeypatch.setenv("PATH", str(own.parent))
    assert called_as() == "wardline"
    monkeypatch.setattr(sys, "argv", ["main.py"])
    assert called_as().endswith("-m pipeline.cli.main")


# -- the configuration ---------------------------------------------------------------------------------------------------


def test_the_command_line_overrides_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.config.write_text('[kafka]\nservers = "file:1"\npartitions = 7\n[clickhouse]\nurl = "http://file:2"\n')
    config = config_of(parse(), home)
    assert (config.kafka.servers, config.clickhouse.url) == ("file:1", "http://file:2")
    config = config_of(parse("--kafka", "line:3", "--clickhouse", "http://line:4"), home)
    assert (config.kafka.servers, config.kafka.partitions, config.clickhouse.url) == ("line:3", 7, "http://line:4")


def test_the_servers_of_a_living_up_hold_for_every_command_of_its_home(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.run.mkdir()
    said = {"name": "up", "state": "ready", "address": "", "kafka": "up:1", "clickhouse": "http://up:2"}
    write_run_file(home.run_file("up"), {**said, "pid": os.getpid()})
    config = config_of(parse("--kafka", "line:3"), home)
    assert (config.kafka.servers, config.clickhouse.url) == ("line:3", "http://up:2")
    write_run_file(home.run_file("up"), {**said, "pid": 2**22 + 1})
    assert config_of(parse(), home) == Config()


@pytest.mark.parametrize("servers", ["", "here", "here:", ":9092", "here:x", "here:0", "here:65536", "a:1,b"])
def test_a_broker_list_that_is_none_is_refused_by_its_part(tmp_path: Path, servers: str) -> None:
    if not servers:
        assert config_of(parse("--kafka", servers), Home(tmp_path)) == Config()
        return
    with pytest.raises(OperatorFault, match=r"kafka\.servers: `.+` is not HOST:PORT"):
        config_of(parse("--kafka", servers), Home(tmp_path))


@pytest.mark.parametrize("url", ["here", "here:8123", "ftp://here", "http://", "http://here:x", "http://here:0", "http://here/db"])
def test_an_address_of_a_store_that_is_none_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(OperatorFault, match=r"clickhouse\.url: `.+` is not http\(s\)://HOST\[:PORT\]"):
        config_of(parse("--clickhouse", url), Home(tmp_path))
    Home(tmp_path).config.write_text(f'[clickhouse]\nurl = "{url}"\n')
    with pytest.raises(OperatorFault, match=r"clickhouse\.url: "):
        config_of(parse(), Home(tmp_path))


def test_a_password_in_the_address_of_a_store_is_refused_and_not_shown(tmp_path: Path) -> None:
    with pytest.raises(OperatorFault) as found:
        config_of(parse("--clickhouse", "http://writer:planted@here:8123"), Home(tmp_path))
    assert "planted" not in str(found.value)
    assert "reader_password_file" in str(found.value)


@pytest.mark.parametrize("text", ["-1", "65536", "x", "", "1.5", "²"])
def test_a_port_is_a_number_in_its_bounds(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a port, 0 to 65535"):
        port(text)
    assert port("0") == 0
    assert port("65535") == 65535


@pytest.mark.parametrize("text", ["0", "1025", "x", "", "-1", "²"])
def test_a_slot_is_a_number_in_its_bounds(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a number from 1 to 1024"):
        slot(text)
    assert slot("1024") == 1024


# -- errors --------------------------------------------------------------------------------------------------------------

ERRORS = {
    "no command": [],
    "an unknown command": ["fly"],
    "an unknown option": ["status", "--colour"],
    "an abbreviated option": ["status", "--js"],
    "a wait that is no number": ["status", "--wait", "long"],
    "too many workers": ["up", "--workers", "2"],
    "no port behind the base": ["up", "--port-base", "65535"],
    "too many doors": ["up", "--doors", "65"],
    "doors that are no number": ["enforce", "--doors", "-1"],
    "no port": ["enforce", "--egress-port", "65536"],
    "a broker list": ["up", "--kafka", "nowhere"],
    "a name": ["enforce", "--name", "../x"],
    "name and slot": ["enforce", "--name", "enforce-1", "--slot", "1"],
    "a slot": ["work", "--slot", "0"],
    "no enrolment": ["enforce", "--enrol", "nothing.enrol"],
    "enrolment and slot": ["work", "--enrol", "x", "--slot", "1"],
    "a kind that cannot be revoked": ["revoke", "weather", "rain", "--reason", "r"],
    "no reason": ["revoke", "agent", "a"],
    "a time without a unit": ["revoke", "agent", "a", "--reason", "r", "--for", "1"],
    "an empty name": ["unrevoke", "agent", ""],
    "no control": ["revoke", "agent", "a", "--reason", "r"],
    "an enrolment without a kafka": ["enforcer", "add", "edge"],
    "a name of another process": ["enforcer", "add", "control", "--kafka", "here:1"],
    "no file to replay": ["replay", "nothing.jsonl"],
    "no folder to check": ["policy", "check", "nothing"],
}


@pytest.mark.parametrize("words", ERRORS.values(), ids=ERRORS)
def test_an_error_is_one_line_and_exit_code_2(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    mask = os.umask(0o077)
    try:
        code = main(words)
    except SystemExit as left:
        code = int(left.code or 0)
    finally:
        os.umask(mask)
    said = capsys.readouterr().err
    assert code == 2
    assert said.startswith("wardline: ")
    assert said.count("\n") == 1


def test_a_broken_configuration_names_file_and_key_in_every_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "wardline.toml").write_text("[kafka]\npartitionss = 3\n")
    for command in ("broker", "store", "control", "work", "enforce", "up", "status", "pause", "revocations"):
        assert main([command, "--home", str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"wardline: {tmp_path}/wardline.toml: kafka.partitionss: unknown key"), command


def test_a_second_up_of_a_home_says_who_holds_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lock = Lock(tmp_path / "run" / "up.lock")
    assert lock.take()
    assert main(["up", "--home", str(tmp_path), "--port-base", "0"]) == 2
    assert capsys.readouterr().err == f"wardline: `{tmp_path}` is held by process {os.getpid()}, another `wardline up`\n"
    lock.release()


# -- status --------------------------------------------------------------------------------------------------------------


def test_a_home_that_does_not_exist_is_not_ready_and_is_not_made(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    home = tmp_path / "none"
    begun = time.monotonic()
    assert main(["status", "--home", str(home), "--wait", "0.5"]) == 1
    assert 0.5 <= time.monotonic() - begun < 5
    assert capsys.readouterr().out == f"nothing runs in {home}\n"
    assert not home.exists()


def say(home: Home, name: str, state: str = "ready", pid: int = 0, **others: object) -> None:
    home.run.mkdir(parents=True, exist_ok=True)
    write_run_file(home.run_file(name), {"name": name, "pid": pid or os.getpid(), "state": state, "address": "a:1", **others})


def test_status_adds_up_the_hosts_and_those_that_they_adopted(tmp_path: Path) -> None:
    home = Home(tmp_path)
    figures: dict[str, Any] = {"spooled": 10, "sealed": 8, "sent": 6, "stored": 4}
    say(home, "broker")
    say(home, "store", state="starting")
    say(home, "control")
    say(home, "work-1", waits_for="the store: is away")
    say(home, "enforce-1", **figures, adopted={"replay-1": figures}, full="outbox at its limit", policy_digest="d")
    found = status.collect(home, Config())
    assert found.lag == {"spooled": 20, "sealed": 16, "sent": 12, "stored": 8}
    assert found.blocked[:-1] == ["work-1: the store: is away", "enforce-1: outbox at its limit"]
    assert found.blocked[-1].startswith(f"control: control of `{tmp_path}` is not up")  # its run file is ours, it is nowhere
    assert [p["name"] for p in found.processes] == ["broker", "store", "control", "work-1", "enforce-1"]
    assert found.policy_digest == "d"
    assert not found.ready
    assert found.deadletters is None
    assert "12 on their way" in status.render(found)
    say(home, "store")
    assert status.collect(home, Config()).ready


def test_status_says_what_workers_have_looked_at_and_which_detectors_have_failed(tmp_path: Path) -> None:
    home = Home(tmp_path)
    say(home, "work-1", lookout={"calls": 1_000, "findings": 2, "lag": 3, "evicted": 0, "defects": 0})
    say(home, "work-2", lookout={"calls": 500, "findings": 1, "lag": 0, "evicted": 7, "defects": 1})
    found = status.collect(home, Config())
    assert found.detection == {"calls": 1_500, "findings": 3, "lag": 3, "evicted": 7}
    assert "detection     1,500 calls looked at, 3 words on findings, 3 messages wait, 7 evicted" in status.render(found)
    assert [line for line in found.warnings if line.startswith("work-")] == [
        "work-2: 1 detectors have failed and look at nothing more (its log says why)"
    ]


def test_a_process_that_was_killed_is_down_and_nothing_is_ready(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for name in ("broker", "store", "control", "work-1", "enforce-1"):
        say(home, name)
    assert status.is_ready(home, Config())
    say(home, "work-1", pid=2**22 + 1)
    assert not status.is_ready(home, Config())
    assert [p["state"] for p in status.collect(home, Config()).processes] == ["ready", "ready", "ready", "down", "ready"]


def test_nothing_is_ready_without_control_and_with_a_host_that_does_not_hear_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for name in ("broker", "store", "work-1"):
        say(home, name)
    say(home, "enforce-1", control={"state": "ready", "why": ""})
    assert not status.is_ready(home, Config())
    say(home, "control", policy_problem={"text": "p.cedar:1:2: expected `;`"}, epoch=7)
    assert status.is_ready(home, Config())
    say(home, "enforce-1", control={"state": "stale", "why": "no heartbeat for 5.2 s"})
    found = status.collect(home, Config())
    assert not found.ready
    assert found.processes[-1]["state"] == "stale"
    assert found.blocked[0] == "enforce-1: stale: no heartbeat for 5.2 s"
    assert found.blocked[1].startswith(f"control: control of `{tmp_path}` is not up")
    assert found.warnings[0] == "policies: p.cedar:1:2: expected `;`; those in force stay"
    assert "epoch 7" in status.render(found)


def test_a_home_that_was_enrolled_expects_what_was_enrolled_and_nothing_else(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for path in (home.trusted("control") / "00.pub", *(home.private_key("hosts", name) for name in ("edge", "replay-1"))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert status.expected(home, Config()) == ["edge"]
    assert not status.is_ready(home, Config())
    say(home, "edge", control={"state": "ready", "why": ""})
    assert status.is_ready(home, Config())
    home.private_key("control", "00").parent.mkdir()
    home.private_key("control", "00").touch()
    assert status.expected(home, Config()) == ["broker", "store", "control", "work-1", "enforce-1"]


def test_what_up_has_planned_must_live_and_no_more(tmp_path: Path) -> None:
    home = Home(tmp_path)
    names = ["broker", "store", "work-1", "enforce-1", "enforce-2"]
    for name in names[:-1]:
        say(home, name)
    say(home, "up", names=names)
    assert not status.is_ready(home, Config())
    say(home, "enforce-2")
    assert status.is_ready(home, Config())
    say(home, "up", state="stopping", names=names)
    assert not status.is_ready(home, Config())


def test_secrets_that_others_can_read_are_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    home = Home(tmp_path)
    for path in (home.private_key("hosts", "enforce-1"), home.password("reader")):
        path.parent.mkdir(parents=True)
        path.touch(0o600)
        path.chmod(0o644)
    found = status.unsafe(home, Config())
    assert [line for line in found if "0644" in line] == [
        f"{home.private_key('hosts', 'enforce-1')}: mode is 0644, must be 0600",
        f"{home.password('reader')}: mode is 0644, must be 0600",
    ]


def test_programs_under_the_same_user_id_are_warned_of(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    found = " ".join(status.unsafe(Home(tmp_path), Config()))
    assert "give Wardline a user of its own" in found


# -- up ------------------------------------------------------------------------------------------------------------------


def test_examples_are_installed_once_and_nothing_is_ever_put_back(tmp_path: Path) -> None:
    home = Home(tmp_path)
    up.install_examples(home)
    policies = sorted(path.name for path in home.policies.iterdir())
    assert [name for name in policies if name.endswith(".cedar")]
    assert (tmp_path / "calls.jsonl").stat().st_size > 0
    (home.policies / policies[0]).unlink()
    (tmp_path / "calls.jsonl").write_text("mine")
    up.install_examples(home)
    assert sorted(path.name for path in home.policies.iterdir()) == policies[1:]
    assert (tmp_path / "calls.jsonl").read_text() == "mine"


def arguments(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**{"enforcers": 1, "workers": 1, "doors": None, "port_base": 0, **given})


def test_ports_follow_the_base_in_the_order_of_the_start(tmp_path: Path) -> None:
    children = up.plan(Home(tmp_path), Config(), arguments(enforcers=2, port_base=5000))
    ports = {child.name: child.command[child.command.index("--metrics-port") + 1] for child in children}
    assert ports == {
        "broker": "5001", "store": "5002", "control": "5003", "work-1": "5004", "enforce-1": "5005", "enforce-2": "5006",
    }  # fmt: skip
    assert children[1].command[-4:-2] == ["--port", "5000"]


def test_configured_servers_take_the_place_of_the_embedded_ends(tmp_path: Path) -> None:
    config = config_of(parse("--kafka", "k:1", "--clickhouse", "http://c:2"), Home(tmp_path))
    children = up.plan(Home(tmp_path), config, arguments(workers=2))
    assert [child.name for child in children] == ["control", "work-1", "work-2", "enforce-1"]
    assert [child.stage for child in children] == [1, 2, 2, 3]
    assert children[0].command[3:5] == children[3].command[3:5] == ["--kafka", "k:1"]
    assert children[1].command[3:7] == ["--kafka", "k:1", "--clickhouse", "http://c:2"]
    assert "--clickhouse" not in children[3].command


# -- the supervisor ------------------------------------------------------------------------------------------------------

READY = """
import json, os, sys, time
home, name = sys.argv[1:3]
with open(f"{home}/run/{name}.json", "w") as file:
    json.dump({"name": name, "pid": os.getpid(), "state": "ready", "address": ""}, file)
print("about to", sys.argv[3], flush=True)
"""


class Story:
    """A supervisor over small programs in place of our processes, with what it said."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, programs: dict[str, tuple[int, str]]) -> None:
        self.home = Home(root)
        (root / "run").mkdir()
        self.lines: list[str] = []
        self.states: list[str] = []
        self.script = root / "program.py"
        children = [Child(name, [name, program], stage, 5.0) for name, (stage, program) in programs.items()]
        self.supervisor = Supervisor(self.home, children, self.lines.append)
        self.children = {child.name: child for child in children}

        def command(child: Child) -> list[str]:
            return [sys.executable, "-c", READY + child.command[1], str(root), child.name, child.command[1].strip()[:20]]

        monkeypatch.setattr(supervise, "command_of", command)

    def run_until(self, done: Callable[[], bool], seconds: float = 10.0) -> int:
        """Run until `done()` is true, then stop as one Ctrl-C does."""

        def ask() -> None:
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and not done():
                time.sleep(0.02)
            self.supervisor.signalled()

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            return self.supervisor.run(self.states.append)
        finally:
            asking.join()


def test_children_start_in_order_and_stop_in_reverse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trail = tmp_path / "trail"
    program = f"""
import signal
def note(what):
    with open({str(trail)!r}, "a") as file:
        file.write(what + " ")
def end(*_):
    note("-" + name)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
note("+" + name)
while True:
    time.sleep(1)
"""
    story = Story(tmp_path, monkeypatch, {"a": (0, program), "b": (1, program), "c": (2, program)})
    assert story.run_until(lambda: trail.exists() and trail.read_text() == "+a +b +c " and "ready" in story.states) == 0
    assert trail.read_text() == "+a +b +c -c -b -a "
    assert story.states == ["starting", "ready", "stopping"]
    assert story.lines == []


def test_a_child_that_dies_is_started_again_and_what_it_said_last_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    program = f"""
if not os.path.exists({str(mark)!r}):
    open({str(mark)!r}, "w").close()
    time.sleep(0.5)
    os.kill(os.getpid(), 9)
time.sleep(60)
"""
    story = Story(tmp_path, monkeypatch, {"a": (0, program)})
    pids = set()

    def again() -> bool:
        said = read_run_file(story.home.run_file("a"))
        if said:
            pids.add(said["pid"])
        return len(pids) == 2

    assert story.run_until(again) == 0
    assert len(story.lines) == 1
    assert story.lines[0].startswith("a was killed by SIGKILL: about to ")
    assert story.lines[0].endswith("; starting it again in 0.5 s")


def test_exit_code_75_means_at_once_and_a_crash_loop_is_called_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(tmp_path, monkeypatch, {"a": (0, "time.sleep(0.3); sys.exit(75)")})
    assert story.run_until(lambda: len(story.lines) >= 5, 30) == 0
    assert all(line.endswith("starting it again in 0.0 s") for line in story.lines[:4])
    assert story.lines[4].startswith("a keeps dying (5 times in ")
    assert story.lines[4].endswith("starting it again in 0.5 s")


def test_a_child_that_works_between_its_deaths_waits_less_than_one_that_never_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "DELAY_FIRST_S", 0.1)
    monkeypatch.setattr(supervise, "DELAY_READY_MAX_S", 0.2)
    story = Story(tmp_path, monkeypatch, {"a": (0, "time.sleep(0.3); sys.exit(1)")})
    assert story.run_until(lambda: len(story.lines) >= 4, 30) == 0
    assert [line.rpartition(" in ")[2] for line in story.lines[:4]] == ["0.1 s", "0.2 s", "0.2 s", "0.2 s"]
    child = story.children["a"]
    child.is_ready = False
    child.process = subprocess.Popen([sys.executable, "-c", "import sys; sys.exit(1)"])
    child.process.wait()
    child.wanted = True
    story.supervisor._died(child, time.monotonic())
    assert child.delay == 0.4


def test_a_start_that_cannot_succeed_names_the_process_and_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = 'os.unlink(f"{home}/run/{name}.json"); print("wardline: key has a loose mode", file=sys.stderr); sys.exit(2)'
    story = Story(tmp_path, monkeypatch, {"good": (0, "time.sleep(60)"), "bad": (1, bad)})
    with pytest.raises(OperatorFault, match="^bad does not start: key has a loose mode$"):
        story.run_until(lambda: False, 5)
    said = read_run_file(story.home.run_file("good"))
    assert said is not None
    assert not said["alive"]


def test_a_child_that_does_not_stop_is_killed_after_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True)\nwhile True: time.sleep(1)"
    story = Story(tmp_path, monkeypatch, {"a": (0, deaf)})
    story.children["a"].stop_s = 0.5
    assert story.run_until(lambda: last_line(story.home.log / "a.log") == "deaf") == 0
    assert story.lines == ["a does not stop within 0 s and is killed"]


def test_a_second_signal_forces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True)\nwhile True: time.sleep(1)"
    story = Story(tmp_path, monkeypatch, {"a": (0, deaf)})
    monkeypatch.setattr(supervise, "SAME_SIGNAL_S", 0.05)
    pids: list[int] = []

    def ready() -> bool:
        if last_line(story.home.log / "a.log") != "deaf":
            return False
        pids.append(int((read_run_file(story.home.run_file("a")) or {})["pid"]))
        story.supervisor.signalled()
        time.sleep(0.5)
        return True

    assert story.run_until(ready) == 1
    assert story.lines == ["forced: what is not stored yet stays in the outbox for the next start"]
    assert not is_alive(pids[0])


def test_a_log_is_bounded_and_its_writer_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LOG_BYTES_MAX", 100)
    path = tmp_path / "a.log"
    with path.open("ab", buffering=0) as writer:
        writer.write(b"x" * 101)
        rotate(path)
        writer.write(b"\nnext\n\n")
    assert path.read_bytes() == b"\nnext\n\n"
    assert (tmp_path / "a.log.1").read_bytes() == b"x" * 101
    assert last_line(path) == "next"
    assert last_line(tmp_path / "none") == ""


def test_a_child_whose_log_cannot_be_opened_starts_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(tmp_path, monkeypatch, {"a": (0, "time.sleep(60)")})
    (tmp_path / "log" / "a.log").mkdir(parents=True)  # no file can be opened there, whoever asks
    assert story.run_until(lambda: "ready" in story.states) == 0
    assert story.lines == [f"{tmp_path}/log/a.log: cannot be opened: Is a directory"]
