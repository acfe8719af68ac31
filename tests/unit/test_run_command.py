"""`wardline run`: the environment of a program, where its credential comes from, which door it gets."""

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from pipeline.cli import agent
from pipeline.cli.credential import Keeper, credential_of, forget, kept_path
from pipeline.cli.doors import find_door, ready_doors
from pipeline.cli.main import build_parser, main
from pipeline.cli.proxyenv import BOTH_CASES, OWN, Proxy, governed, user_of
from pipeline.shells.controlclient import Change, Unsettled
from schemas.errors import OperatorFault, PeerFault
from schemas.home import Home
from schemas.process import private_dir

PROXY = Proxy(host="127.0.0.1", port=17480, user="researcher+s1", secret="se/c:r@t")
RELAY = Proxy(host="127.0.0.1", port=17480)


# -- the environment -----------------------------------------------------------------------------------------------------


def test_every_variable_names_the_door() -> None:
    env = governed({"PATH": "/bin", "http_proxy": "http://elsewhere"}, PROXY)
    url = "http://researcher+s1:se%2Fc%3Ar%40t@127.0.0.1:17480"
    for name in (*BOTH_CASES, *(name.upper() for name in BOTH_CASES), *OWN):
        assert env[name] == url, name
    assert env["PATH"] == "/bin"
    assert env["NODE_USE_ENV_PROXY"] == "1"
    assert "elsewhere" not in " ".join(env.values())


def test_a_client_that_reads_the_url_gets_the_user_and_the_secret() -> None:
    parts = urlsplit(governed({}, PROXY)["https_proxy"])
    assert (unquote(parts.username or ""), unquote(parts.password or "")) == ("researcher+s1", "se/c:r@t")
    assert (parts.hostname, parts.port) == ("127.0.0.1", 17480)
    assert urlsplit(Proxy(host="::1", port=80, user="a", secret="b").url).hostname == "::1"


@pytest.mark.parametrize("name", [
    "NO_PROXY", "no_proxy", "No_Proxy", "NO_GRPC_PROXY", "SOCKS_PROXY", "socks5_proxy", "AUTO_PROXY", "npm_config_no_proxy",
    "GIT_PROXY_COMMAND", "WARDLINE_CREDENTIAL", "WARDLINE_PARENT",
])  # fmt: skip
def test_what_names_another_way_is_gone(name: str) -> None:
    assert name not in governed({name: "x"}, PROXY)


@pytest.mark.parametrize(("count", "at"), [(None, 0), ("2", 2), ("", 0), ("x", 0)])
def test_git_is_told_behind_what_it_is_told_already(count: str | None, at: int) -> None:
    env = governed({} if count is None else {"GIT_CONFIG_COUNT": count, "GIT_CONFIG_KEY_0": "user.name"}, RELAY)
    assert env[f"GIT_CONFIG_KEY_{at}"] == "http.proxy"
    assert env[f"GIT_CONFIG_VALUE_{at}"] == "http://127.0.0.1:17480"
    assert env["GIT_CONFIG_COUNT"] == str(at + 1)


def test_java_is_told_the_address_and_not_the_secret_which_it_would_print() -> None:
    said = governed({"JAVA_TOOL_OPTIONS": "-Xmx1g"}, PROXY)["JAVA_TOOL_OPTIONS"]
    assert said.startswith("-Xmx1g -Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort=17480 -Dhttps.proxyHost=")
    assert "se/c" not in said
    assert "%2F" not in said


def test_a_contained_program_gets_neither_a_credential_nor_the_names_of_sockets() -> None:
    env = governed({"SSH_AUTH_SOCK": "/tmp/s", "DOCKER_HOST": "unix:///x", "API_KEY": "of the user"}, RELAY, contained=True)
    assert not {"SSH_AUTH_SOCK", "DOCKER_HOST"} & env.keys()
    assert env["API_KEY"] == "of the user"
    assert env["HTTPS_PROXY"] == "http://127.0.0.1:17480"
    assert env["RSYNC_PROXY"] == "127.0.0.1:17480"


@pytest.mark.parametrize(("name", "session", "said"), [
    ("a:b", "", "--as: `a:b` has a `:`"), ("", "", "the agent has no name"), ("a\n", "", "has a control character"),
    ("a", "x:y", "--session: `x:y` has a `:`"), ("a", "x+y", "has a `+`"), ("a" * 257, "", "257 bytes, limit is 256"),
])  # fmt: skip
def test_a_name_that_a_proxy_user_cannot_carry_is_refused(name: str, session: str, said: str) -> None:
    with pytest.raises(OperatorFault) as caught:
        user_of(name, session)
    assert said in str(caught.value)


def test_the_session_stands_behind_the_agent() -> None:
    assert (user_of("a", ""), user_of("a", "s")) == ("a", "a+s")


# -- the command line ----------------------------------------------------------------------------------------------------


def test_what_stands_behind_the_dashes_is_the_programs_own() -> None:
    args = build_parser().parse_args(["run", "--as", "a", "--", "git", "checkout", "--", "--contain"])
    assert (args.command, args.contain) == (["git", "checkout", "--", "--contain"], False)


def test_options_of_a_containment_need_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--home", str(tmp_path), "--as", "a", "--bind", "x", "--", "true"]) == 2
    assert capfd.readouterr().err == "wardline: --bind and --ro-bind are for a containment: give --contain\n"


def test_without_a_door_nothing_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--home", str(tmp_path), "--as", "a", "--", "touch", str(tmp_path / "ran")]) == 2
    assert "is ready: `wardline up` starts them" in capfd.readouterr().err
    assert not (tmp_path / "ran").exists()


# -- the door ------------------------------------------------------------------------------------------------------------


def say(home: Home, name: str, **more: Any) -> None:
    private_dir(home.run)
    said = {"name": name, "pid": os.getpid(), "state": "ready", "address": "127.0.0.1:4711"} | more
    home.run_file(name).write_text(json.dumps(said))


def test_the_first_door_that_is_ready_is_used(tmp_path: Path) -> None:
    home = Home(tmp_path)
    say(home, "door-10")
    say(home, "door-2", address="0.0.0.0:4712")
    say(home, "door-1", state="starting")
    say(home, "door-3", pid=(1 << 22) + 1)
    say(home, "door-4", address="")
    assert [(door.name, door.host, door.port) for door in ready_doors(home)] == [
        ("door-2", "127.0.0.1", 4712), ("door-10", "127.0.0.1", 4711),
    ]  # fmt: skip
    assert find_door(home, None).name == "door-2"
    assert find_door(home, "door-10").socket == home.run / "door-10.sock"
    with pytest.raises(OperatorFault, match="--door: `door-1` is not ready here, door-2, door-10 are"):
        find_door(home, "door-1")


def test_a_home_without_doors_says_what_starts_them(tmp_path: Path) -> None:
    with pytest.raises(PeerFault, match="no door of .* is ready"):
        find_door(Home(tmp_path), None)


# -- the credential ------------------------------------------------------------------------------------------------------


def secret_file(path: Path, text: str, mode: int = 0o600) -> Path:
    private_dir(path.parent)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_file_comes_before_the_variable_and_that_before_what_was_kept(tmp_path: Path) -> None:
    home = Home(tmp_path)
    file = secret_file(tmp_path / "file", "from-file\n")
    secret_file(kept_path(home, "a"), "kept\n")
    environ: Mapping[str, str] = {"WARDLINE_CREDENTIAL": "from-variable"}
    assert credential_of(home, "a", str(file), environ) == "from-file"
    assert credential_of(home, "a", None, environ) == "from-variable"
    assert credential_of(home, "a", None, {}) == "kept"
    with pytest.raises(OperatorFault, match="there is no credential of agent `b`"):
        credential_of(home, "b", None, {})


@pytest.mark.parametrize(("text", "mode", "said"), [
    ("hush-hush", 0o640, "mode is 0640, must be 0600"), ("", 0o600, "is empty"), ("hush hush", 0o600, "is no credential"),
    ("hush\nhush", 0o600, "is no credential"), ("hush\u00e9", 0o600, "is no credential"),
    ("hush" * 5000, 0o600, "more than 16384"),
])  # fmt: skip
def test_a_file_that_is_no_credential_or_not_private_is_refused_and_not_shown(
    tmp_path: Path, text: str, mode: int, said: str
) -> None:
    file = secret_file(tmp_path / "file", text, mode)
    with pytest.raises(OperatorFault) as caught:
        credential_of(Home(tmp_path), "a", str(file), {})
    assert said in str(caught.value)
    assert "hush" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OperatorFault, match="nowhere: cannot be read: no such file"):
        credential_of(Home(tmp_path), "a", str(tmp_path / "nowhere"), {})


@pytest.mark.parametrize("name", ["../../etc/x", ".", "..", "a/b", "a%2Fb", "\u00e9", "spiffe://x/y"])
def test_what_is_kept_lies_in_its_folder_whatever_the_agent_is_called(tmp_path: Path, name: str) -> None:
    path = kept_path(Home(tmp_path), name)
    assert path.parent == tmp_path / "secrets" / "agents"
    assert path.resolve().parent == tmp_path.resolve() / "secrets" / "agents"
    assert len({kept_path(Home(tmp_path), one) for one in (name, name + "x", "a")}) == 3


class Asked:
    """Control's side of a change, that answers or does not."""

    fault: Exception | None = None

    def __init__(self, *_: object) -> None:
        pass

    def change(self, do: str, **fields: Any) -> Change:
        kept = Path(os.environ["WARDLINE_HOME"]) / "secrets" / "agents" / "a.secret.new"
        assert not kept.exists() or len(kept.read_text()) == 44, "what is kept is on disk before control knows of it"
        if Asked.fault is not None:
            raise Asked.fault
        return Change(epoch=7, result={})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("WARDLINE_HOME", str(tmp_path))
    monkeypatch.setattr(agent, "Control", Asked)
    monkeypatch.setattr(Asked, "fault", None)
    return Home(tmp_path)


def test_a_credential_that_is_kept_is_private_and_not_printed(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["agent", "add", "a", "--owner", "o", "--keep"]) == 0
    path = kept_path(home, "a")
    out = capsys.readouterr().out
    assert out == f"added agent `a` as epoch 7; its credential is in {path}\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    first = credential_of(home, "a", None, {})
    assert main(["agent", "rotate", "a", "--keep"]) == 0
    assert credential_of(home, "a", None, {}) != first
    assert first not in capsys.readouterr().out
    assert os.listdir(path.parent) == ["a.secret"]


def test_a_credential_that_is_printed_is_not_kept_and_ends_the_one_that_was(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    Keeper(home, "a").write("old")
    Keeper(home, "a").settle()
    assert main(["agent", "rotate", "a"]) == 0
    assert len(capsys.readouterr().out.splitlines()[-1]) == 43
    assert not kept_path(home, "a").exists()


@pytest.mark.parametrize(("fault", "stays"), [(OperatorFault("agent `a` is there already"), False), (Unsettled("broke"), True)])
def test_a_change_that_fails_leaves_what_was_kept_and_one_that_is_unknown_leaves_both(
    home: Home, monkeypatch: pytest.MonkeyPatch, fault: Exception, stays: bool
) -> None:
    Keeper(home, "a").write("old")
    Keeper(home, "a").settle()
    monkeypatch.setattr(Asked, "fault", fault)
    assert main(["agent", "rotate", "a", "--keep"]) == (1 if stays else 2)
    assert credential_of(home, "a", None, {}) == "old"
    assert kept_path(home, "a").with_name("a.secret.new").exists() == stays


def test_what_is_kept_of_an_agent_that_is_removed_goes(tmp_path: Path) -> None:
    home = Home(tmp_path)
    Keeper(home, "a").write("old")
    Keeper(home, "a").settle()
    Keeper(home, "a").write("new")
    forget(home, "a")
    forget(home, "a" * 250)
    assert os.listdir(home.agent_secrets) == []


def test_a_parser_reads_every_option(tmp_path: Path) -> None:
    words = ["run", "--as", "a", "--session", "s", "--door", "door-2", "--credential-file", "f", "--contain", "--bind", "x",
             "--ro-bind", "y", "--ro-bind", "z", "--", "true"]  # fmt: skip
    args: argparse.Namespace = build_parser().parse_args(words)
    assert (args.agent, args.session, args.door, args.credential_file) == ("a", "s", "door-2", "f")
    assert (args.bind, args.ro_bind) == (["x"], ["y", "z"])
