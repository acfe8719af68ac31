"""The files that replays are fed with: the sample in the repository, and AgentDojo's runs."""

import io
import json
import re
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import agentdojo, sample, weblogs
from benchmarks.__main__ import NAMES, machine
from benchmarks.__main__ import main as run_benchmarks
from ext.decide import Matcher
from pipeline.policy.load import load_bundle
from schemas.calls import RecordedCall, parse_call
from schemas.records import Outcome, Verdict
from schemas.vocabulary import action_uid
from tests.support.data import REPOSITORY, data_folder
from tests.support.jobs import every

EXAMPLES = REPOSITORY / "pipeline" / "cli" / "examples"
CALLS = 137_374
RUNS = 36_679
REQUESTS = {"rita": 26_181, "benign": 8_175, "exploits": 4_703}


def read(path: Path) -> list[RecordedCall]:
    with path.open("rb") as file:
        return [parse_call(line, n, file=path.name, digest=b"") for n, line in enumerate(file, 1)]


def test_the_sample_in_the_repository_is_what_its_generator_makes(tmp_path: Path) -> None:
    assert sample.main([str(tmp_path / "made")]) == 0
    assert (tmp_path / "made").read_bytes() == (EXAMPLES / "calls.jsonl").read_bytes()


def test_the_sample_has_every_kind_of_call() -> None:
    calls = read(EXAMPLES / "calls.jsonl")
    assert len(calls) == 1000
    assert {len(call.chain) for call in calls} == {1, 2, 3, 4}
    assert len({call.agent for call in calls}) > 3
    assert {call.action.partition(":")[0] for call in calls} == {"mcp", "http", "tcp"}
    assert {call.resource.partition("::")[0] for call in calls} == {"Tool", "Host"}
    assert {call.outcome for call in calls} == {Outcome.OK, Outcome.ERROR}
    assert [call.time_ns for call in calls] == sorted(call.time_ns for call in calls)


def test_the_example_policies_give_both_verdicts_on_the_sample_and_each_forbid_is_met() -> None:
    matcher = Matcher(load_bundle(EXAMPLES / "policies").encode())
    verdicts: Counter[Verdict] = Counter()
    met: set[str] = set()
    for call in read(EXAMPLES / "calls.jsonl"):
        links = tuple(uid for uid in call.chain if uid.startswith("Agent::"))
        decision = matcher.decide(links, action_uid(call.action), call.resource)
        verdicts[decision.verdict] += 1
        met |= {decision.reason, *decision.because}
    assert verdicts[Verdict.ALLOW] > 500
    assert verdicts[Verdict.DENY] > 100
    assert {"forbid", "no-permit", "sub-agents-send-nothing-out", "no-credentials", "no-paste-sites", "no-raw-tunnels"} <= met


def call_of(name: str, **args: Any) -> dict[str, Any]:
    return {"function": name, "args": args, "id": "call_1"}  # the same id twice, as in the real runs


def run_of(*calls: dict[str, Any], answers: list[Any], duration: float | None = 10.0) -> dict[str, Any]:
    answered = [
        {"role": "tool", "content": content, "error": error, "tool_call": call}
        for call, (content, error) in zip(calls, answers, strict=False)
    ]
    messages = [{"role": "user", "content": "do"}, {"role": "assistant", "content": None, "tool_calls": list(calls)}, *answered]
    return {"messages": [*messages, {"role": "assistant", "content": "done", "tool_calls": None}], "duration": duration}


RUNS_MADE = {
    "local-model/banking/user_task_1/none/none": run_of(
        call_of("read_file", path="é"), call_of("read_file", path="é"), call_of("<empty-function-name>"),
        answers=[("text é", None), ([{"type": "text", "content": "abc"}], None), ("", "ValueError: no such tool")],
    ),
    "a-model/slack/user_task_1/direct/injection_task_1": run_of(call_of("get_channels"), answers=[], duration=None),
    "b-model/slack/user_task_1/direct/injection_task_1": {"messages": [], "duration": 3.0},
}  # fmt: skip


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    for name, run in RUNS_MADE.items():
        path = tmp_path / "runs" / f"{name}.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(run))
    return tmp_path / "runs"


def test_a_runs_calls_are_lines_in_the_order_of_its_path_and_messages(unpacked: Path, tmp_path: Path) -> None:
    assert agentdojo.main([str(unpacked), str(tmp_path / "out")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert lines[0] == {
        "time": "2025-06-02T00:00:00.000000Z", "agent": "a-model", "chain": ['User::"Emma Johnson"', 'Agent::"a-model"'],
        "session": "a-model/slack/user_task_1/direct/injection_task_1", "action": "mcp:tools/call",
        "resource": 'Tool::"slack/get_channels"', "bytes_out": 2, "bytes_in": 0, "outcome": "error",
        "error": "no result in the run", "trace_id": lines[0]["trace_id"], "parent_span": lines[0]["parent_span"],
    }  # fmt: skip
    # a second after the empty run of 3 seconds, which began a second after the first: 1 + 3 + 1 + a quarter of 10
    assert [line["time"] for line in lines[1:]] == [f"2025-06-02T00:00:{s}00000Z" for s in ("07.5", "10.0", "12.5")]
    assert [line["bytes_out"] for line in lines[1:]] == [len('{"path":"é"}'.encode())] * 2 + [2]
    assert [line["bytes_in"] for line in lines[1:]] == [len("text é".encode()), 3, 0]
    assert [line["outcome"] for line in lines[1:]] == ["ok", "ok", "error"]
    assert lines[3]["resource"] == 'Tool::"banking/<empty-function-name>"'
    assert lines[3]["error"] == "ValueError: no such tool"
    assert len({line["trace_id"] for line in lines[1:]}) == 1
    assert len({(line["trace_id"], line["parent_span"]) for line in lines}) == 4
    assert len(read(tmp_path / "out")) == 4


def test_packed_or_unpacked_the_lines_are_the_same(unpacked: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    with tarfile.open(packed / agentdojo.ARCHIVE, "w:xz") as tar:
        for name in reversed(RUNS_MADE):
            data = json.dumps(RUNS_MADE[name]).encode()
            member = tarfile.TarInfo(f"runs/{name}.json")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    for source in (unpacked, packed):
        assert agentdojo.main([str(source), str(tmp_path / f"{source.name}.jsonl")]) == 0
    assert (tmp_path / "runs.jsonl").read_bytes() == (tmp_path / "packed.jsonl").read_bytes()


MIXED_UP = run_of(call_of("x"), answers=[("", None)])
MIXED_UP["messages"][2]["tool_call"] = call_of("y")


@pytest.mark.parametrize(
    ("name", "run", "said"),
    [
        ("b/c/d/e", {}, "`b/c/d/e.json` is not PIPELINE/SUITE/USER_TASK/ATTACK/INJECTION.json"),
        ("a/b/c/d/e", {"messages": [{"role": "tool"}]}, "`a/b/c/d/e` has 1 answers to 0 calls"),
        ("a/b/c/d/e", MIXED_UP, "`a/b/c/d/e` answers `y` where call 0 is `x`"),
        ("a/b/c/d/e", [], "`a/b/c/d/e` has no messages: it is no run"),
    ],
)
def test_what_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, run: Any, said: str) -> None:
    path = tmp_path / f"{name}.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(run))
    assert agentdojo.main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"{tmp_path}: {said}\n"


def test_a_folder_without_runs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert agentdojo.main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"{tmp_path}: no {agentdojo.ARCHIVE} and no run in it\n"
    assert agentdojo.main([]) == 2


@pytest.mark.soak
@pytest.mark.data
def test_every_call_of_agentdojo_is_a_line(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    source = data_folder() / "agentdojo"
    done = subprocess.run([sys.executable, "-m", "benchmarks.agentdojo", str(source), str(out)], check=True, cwd=REPOSITORY,
                          capture_output=True, text=True)  # fmt: skip
    assert done.stdout == f"{out}: {CALLS} calls of {RUNS} runs\n"
    calls = read(out)
    assert len(calls) == len({(call.trace_id, call.parent_span) for call in calls}) == CALLS
    assert len({call.agent for call in calls}) == 29
    assert 'Tool::"slack/<empty-function-name>"' in {call.resource for call in calls}
    matcher = Matcher(load_bundle(EXAMPLES / "policies").encode())
    found = Counter(matcher.decide(call.chain[1:], action_uid(call.action), call.resource).verdict for call in calls)
    assert found[Verdict.ALLOW] > found[Verdict.DENY] > 1000


@pytest.mark.data
def test_every_request_of_the_web_logs_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    assert weblogs.main([str(data_folder()), str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: {sum(REQUESTS.values())} calls\n"
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert Counter(line["agent"].partition("-")[0] for line in lines) == REQUESTS
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    assert len({line["agent"] for line in lines if line["resource"] == 'Host::"www.alexa.com:80"'}) == 10  # where it ran
    some = read(every(out, 20, tmp_path / "some.jsonl"))
    assert all(call.agent.endswith(f"-{call.client}") for call in some)
    assert {call.chain[0] for call in some if call.session} == {'User::"Nico Rosberg"'}


def test_web_logs_that_are_none_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert weblogs.main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path}: [Errno 2] No such file or directory: ")
    assert weblogs.main([]) == 2
    with pytest.raises(ValueError, match="is no line of a gateway"):
        list(weblogs.gateway("g", b"[30/Apr/2014:19:57:12 -0700] nobody\n"))


def test_an_unknown_benchmark_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_benchmarks(["nothing"]) == 2
    assert capsys.readouterr().err == f"benchmarks: `nothing` is none of {', '.join(NAMES)}\n"


def test_benchmarks_run_in_turn_with_their_options_and_fail_when_a_limit_is_missed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[str, list[str]]] = []

    class Module:
        def __init__(self, name: str) -> None:
            self.name = name

        def main(self, argv: list[str]) -> int:
            ran.append((self.name, argv))
            return int(self.name == "decide")

    monkeypatch.setattr("benchmarks.__main__.importlib.import_module", lambda name: Module(name.removeprefix("benchmarks.")))
    assert run_benchmarks(["spool", "--quick"]) == 0
    assert run_benchmarks([]) == 1
    assert ran == [("spool", ["--quick"]), *((name, []) for name in NAMES)]
    assert capsys.readouterr().out.endswith("missed: decide\n")


def test_the_machine_is_named_in_one_line() -> None:
    assert re.fullmatch(r"machine: \d+ x .+, \w+ .+, python 3\.\d+\.\d+.*, load \d+\.\d", machine())
