"""`wardline policy check` and `wardline policy test`, and the example policies through both."""

import json
import re
import shlex
from pathlib import Path

import pytest

from ext.decide import Matcher
from pipeline.cli.main import main
from pipeline.policy.load import load_bundle, load_set
from schemas.records import Verdict
from tests.support.policies import Cedar

EXAMPLES = Path(__file__).parents[2] / "pipeline" / "cli" / "examples" / "policies"
CALL = 'Action::"mcp:tools/call"'
DIGEST = re.compile(r"digest [0-9a-f]{64}")

POLICIES = """
@id("use") permit(principal in G::"g", action, resource in McpServer::"s");
@id("no") forbid(principal, action, resource == Tool::"s/no");
"""
ENTITIES = [{"uid": {"type": "Agent", "id": "a"}, "attrs": {}, "parents": [{"type": "G", "id": "g"}]}]

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "p.cedar").write_text(POLICIES)
    (tmp_path / "policies" / "entities.json").write_text(json.dumps(ENTITIES))
    return tmp_path / "policies"


def test_check_says_how_many_and_which_digest(folder: Path, capsys: Capture) -> None:
    assert main(["policy", "check", str(folder)]) == 0
    digest = load_bundle(folder).digest
    assert capsys.readouterr().out == f"ok: {folder}: 2 policies, 1 entity, digest {digest}\n"


def test_check_without_a_folder_takes_the_home(folder: Path, capsys: Capture) -> None:
    assert main(["policy", "check", "--home", str(folder.parent)]) == 0
    assert f"ok: {folder}: 2 policies" in capsys.readouterr().out


def test_check_prints_the_first_error_in_one_line_and_exits_with_2(folder: Path, capsys: Capture) -> None:
    (folder / "q.cedar").write_text("\n permit(principal, action, resource) when { true };")
    assert main(["policy", "check", str(folder)]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"wardline: {folder}/q.cedar:2:38: conditions (`when`) are not supported yet\n")


def test_check_of_an_empty_folder_says_that_every_call_is_refused(tmp_path: Path, capsys: Capture) -> None:
    assert main(["policy", "check", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith(": nothing is permitted, so every call is refused\n")


def test_check_of_no_folder_is_an_error(tmp_path: Path, capsys: Capture) -> None:
    assert main(["policy", "check", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"wardline: {tmp_path}/none: is no folder (an enforcer without one refuses every call)\n"


def tried(folder: Path, capsys: Capture, *words: str) -> tuple[int, str, str]:
    code = main(["policy", "test", str(folder), *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_test_says_what_each_link_gets(folder: Path, capsys: Capture) -> None:
    words = ("--chain", 'User::"alice"', "a", "b", "--action", "mcp:tools/call", "--resource", 'Tool::"s/t"')
    assert tried(folder, capsys, *words) == (
        0,
        'deny: no-permit\n  Agent::"a"  allow: permit by use\n  Agent::"b"  deny: no-permit\n',
        "",
    )


def test_test_names_what_forbids(folder: Path, capsys: Capture) -> None:
    words = ("--chain", 'Agent::"a"', "--action", CALL, "--resource", 'Tool::"s/no"')
    assert tried(folder, capsys, *words) == (0, 'deny: forbid by no\n  Agent::"a"  deny: forbid by no\n', "")


@pytest.mark.parametrize(("expected", "code"), [("allow", 0), ("deny", 1)])
def test_test_can_expect_a_decision(folder: Path, capsys: Capture, expected: str, code: int) -> None:
    words = ("--chain", "a", "--action", "mcp:tools/call", "--resource", 'Tool::"s/t"', "--expect", expected)
    assert tried(folder, capsys, *words)[0] == code


@pytest.mark.parametrize(
    ("chain", "said"),
    [
        (["a"] * 9, "deny: chain, since 9 principals are more than 8\n"),
        (['User::"alice"'], "deny: identity\n"),
        (["a", 'User::"alice"'], "deny: identity\n"),
    ],
)
def test_test_refuses_chains_as_an_enforcer_does(folder: Path, capsys: Capture, chain: list[str], said: str) -> None:
    words = ("--chain", *chain, "--action", "mcp:tools/call", "--resource", 'Tool::"s/t"', "--expect", "deny")
    assert tried(folder, capsys, *words) == (0, said, "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"--chain": 'Host::"x"'}, '--chain: `Host::"x"` is none of Agent, User, Service'),
        ({"--chain": 'Agent::"x'}, '`Agent::"x` is no entity uid: one is written `Type::"id"`'),
        ({"--chain": ""}, "agent is empty"),
        ({"--action": CALL.replace("Action", "Act")}, '--action: `Act::"mcp:tools/call"` is no action'),
        ({"--action": "http:read"}, "`http:read` is a group of actions, no action of a call"),
        ({"--resource": "s/t"}, '`s/t` is no entity uid: one is written `Type::"id"`'),
    ],
)
def test_test_refuses_what_is_no_call(folder: Path, capsys: Capture, words: dict[str, str], message: str) -> None:
    given = {"--chain": "a", "--action": "mcp:tools/call", "--resource": 'Tool::"s/t"'} | words
    assert tried(folder, capsys, *(word for pair in given.items() for word in pair)) == (2, "", f"wardline: {message}\n")


def test_the_example_policies_are_sound(capsys: Capture) -> None:
    assert main(["policy", "check", str(EXAMPLES)]) == 0
    assert DIGEST.search(capsys.readouterr().out)


TRIED = {
    ("planner", "mcp:tools/call", 'Tool::"workspace/list_files"'): ("permit", ("assistants-use-office",)),
    ("planner", "mcp:tools/call", 'Tool::"banking/send_money"'): ("permit", ("assistants-use-office",)),
    ("researcher", "mcp:tools/call", 'Tool::"banking/send_money"'): ("forbid", ("sub-agents-move-no-money",)),
    ("researcher", "mcp:tools/call", 'Tool::"workspace/send_email"'): ("forbid", ("sub-agents-send-nothing-out",)),
    ("researcher", "mcp:tools/call", 'Tool::"workspace/delete_file"'): ("forbid", ("sub-agents-destroy-nothing",)),
    ("planner", "mcp:tools/call", 'Tool::"banking/update_password"'): ("forbid", ("no-credentials",)),
    ("command-r", "mcp:tools/call", 'Tool::"banking/get_balance"'): ("permit", ("assistants-use-office",)),
    ("command-r", "mcp:tools/call", 'Tool::"banking/send_money"'): ("forbid", ("trial-moves-no-money",)),
    ("command-r", "mcp:tools/call", 'Tool::"slack/remove_user_from_slack"'): ("forbid", ("trial-destroys-nothing",)),
    ("gemini-2.0-flash-001", "mcp:tools/call", 'Tool::"slack/get_webpage"'): ("permit", ("newcomers-read",)),
    ("gemini-2.0-flash-001", "mcp:tools/call", 'Tool::"slack/post_webpage"'): ("no-permit", ()),
    ("planner", "mcp:tools/call", 'Tool::"slack/<empty-function-name>"'): ("forbid", ("no-empty-tool",)),
    ("planner", "mcp:tools/call", 'Tool::"other/anything"'): ("no-permit", ()),
    ("nobody", "mcp:tools/call", 'Tool::"workspace/list_files"'): ("no-permit", ()),
    ("planner", "mcp:tools/list", 'McpServer::"other"'): ("permit", ("assistants-look-around",)),
    ("planner", "http:GET", 'Host::"docs.python.org:443"'): ("permit", ("assistants-read-references",)),
    ("planner", "http:POST", 'Host::"docs.python.org:443"'): ("no-permit", ()),
    ("planner", "http:POST", 'Host::"api.example.com:443"'): ("permit", ("assistants-use-own-api",)),
    ("researcher", "http:GET", 'Host::"example.com:80"'): ("permit", ("assistants-use-own-api",)),
    ("researcher", "http:CONNECT", 'Host::"example.com:443"'): ("permit", ("assistants-use-own-api",)),
    ("researcher", "http:GET", 'Host::"pastebin.com:80"'): ("forbid", ("no-paste-sites",)),
    ("planner", "http:CONNECT", 'Host::"files.pythonhosted.org:443"'): ("permit", ("assistants-fetch-packages",)),
    ("planner", "http:CONNECT", 'Host::"registry.npmjs.org:443"'): ("permit", ("assistants-fetch-packages",)),
    ("planner", "http:POST", 'Host::"upload.pypi.org:443"'): ("no-permit", ()),
    ("planner", "http:CONNECT", 'Host::"en.wikipedia.org:443"'): ("no-permit", ()),
    ("planner", "http:POST", 'Host::"pastebin.com:443"'): ("forbid", ("no-paste-sites",)),
    ("planner", "tcp:CONNECT", 'Host::"api.example.com:22"'): ("forbid", ("no-raw-tunnels",)),
}


@pytest.fixture(scope="module")
def examples() -> Matcher:
    return Matcher(load_bundle(EXAMPLES).encode())


@pytest.mark.parametrize(("agent", "action", "resource"), TRIED)
def test_the_example_policies_decide(examples: Matcher, agent: str, action: str, resource: str) -> None:
    decision = examples.decide((f'Agent::"{agent}"',), f'Action::"{action}"', resource)
    assert (decision.reason, decision.because) == TRIED[agent, action, resource]


def test_every_example_policy_decides_something_and_cedar_agrees(examples: Matcher) -> None:
    asked = [(f'Agent::"{agent}"', f'Action::"{action}"', resource) for agent, action, resource in TRIED]
    text = "\n".join(path.read_text() for path in sorted(EXAMPLES.glob("*.cedar")))
    known = load_set(EXAMPLES).bundle
    cedar = Cedar(text, known.parents, [uid for question in asked for uid in question], [rule.id for rule in known.rules])
    for (link, action, resource), (permits, forbids) in zip(asked, cedar.ask(asked), strict=True):
        decision = examples.decide((link,), action, resource)
        assert (decision.verdict is Verdict.ALLOW) == bool(permits)
        assert set(decision.because) == permits | forbids
    assert {name for _, because in TRIED.values() for name in because} == {rule.id for rule in known.rules}


def test_a_sub_agent_takes_its_limits_along(examples: Matcher) -> None:
    chain = ('Agent::"planner"', 'Agent::"researcher"')
    assert examples.decide(chain, CALL, 'Tool::"workspace/search_files"').verdict is Verdict.ALLOW
    for links in (chain, chain[::-1]):
        assert examples.decide(links, CALL, 'Tool::"workspace/send_email"').because == ("sub-agents-send-nothing-out",)


def test_the_example_in_the_documentation_prints_what_it_says(capsys: Capture) -> None:
    page = (EXAMPLES.parents[3] / "docs" / "policy.md").read_text()
    _, begins, rest = page.partition("    $ wardline policy test DIR ")
    words, _, printed = rest.partition("\n    deny")
    expected = f"deny{printed.partition(chr(10) * 2)[0]}\n".replace("\n    ", "\n")
    code, said, _ = tried(EXAMPLES, capsys, *shlex.split(words.replace("\\\n", "")))
    assert begins
    assert (code, said) == (0, expected)
