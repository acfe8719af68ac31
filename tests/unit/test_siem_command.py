"""`wardline siem` and `wardline siem test`: what is said, and the exit code of each answer."""

from pathlib import Path

import pytest

from pipeline.cli.main import main
from tests.support.certificates import Authority
from tests.support.receivers import TOKEN, collector, receiver


def home(tmp_path: Path, text: str) -> str:
    root = tmp_path / "home"
    root.mkdir(mode=0o700)
    (root / "wardline.toml").write_text(text)
    return str(root)


def test_a_sample_says_what_came_back_and_who_must_act(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority = Authority(tmp_path / "ca")
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text(TOKEN)
    with receiver(*authority.issue("syslog")) as syslog, collector() as splunk:
        config = f"""
            [[siem]]
            name = "splunk"
            kind = "splunk"
            url = "http://127.0.0.1:{splunk.port}"
            token_file = "{token}"
            [[siem]]
            name = "syslog"
            kind = "syslog"
            url = "tls://127.0.0.1:{syslog.port}"
            ca_file = "{authority.file}"
            [[siem]]
            name = "lines"
            path = "out/alerts.jsonl"
        """
        root = home(tmp_path, config)

        def said(sink: str, code: int) -> str:
            assert main(["siem", "test", sink, "--home", root]) == code
            found = capsys.readouterr()
            assert TOKEN not in found.out + found.err
            return found.out + found.err

        where = f"splunk: taken by http://127.0.0.1:{splunk.port}"
        assert said("splunk", 0).splitlines()[:2] == [where, "  came back  200 Success (code 0)"]
        (event,) = (one["event"] for one in splunk.events)
        assert (event["severity_id"], event["message"]) == (1, "Wardline test event for the sink splunk: nothing has happened")
        again = said("splunk", 0)
        assert splunk.events[1]["event"]["metadata"]["uid"] in again
        assert "acknowledged by the other side's kernel" in said("syslog", 0)
        assert f"lines: taken by {root}/out/alerts.jsonl\n  came back  1 lines, " in said("lines", 0)
        assert "alerts: NOT taken: the broker of" in said("alerts", 1)
        token.chmod(0o644)
        assert "mode is 0644, must be 0600" in said("splunk", 2)
        token.chmod(0o600)
        token.write_text("wrong")
        assert f"answers 403 code 4 (Invalid token): put a valid token into {token}" in said("splunk", 2)
        assert "`none` is no sink of" in said("none", 2)
    token.write_text(TOKEN)
    assert "splunk: NOT taken: http://127.0.0.1:" in said("splunk", 1)
    assert "syslog: NOT taken: tls://127.0.0.1:" in said("syslog", 1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no [[siem]], so there is no sink to feed"),
        ("[[siem]]\nname = 'a'", "siem.path: is missing"),
    ],
)
def test_a_home_without_a_good_sink_does_not_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    assert main(["siem", "--home", home(tmp_path, text)]) == 2
    assert says in capsys.readouterr().err
