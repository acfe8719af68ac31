"""The first minutes of a new home: what `wardline up` prints to be tried is tried, word for word, and says what it promises."""

import re
import subprocess
from pathlib import Path

from tests.support.dns import NameServer, say
from tests.support.governed import refusal_of
from tests.support.home import Wardline, wait_until
from tests.support.origins import ADDRESS, Origins

PAGE = "<h1>Example Domain</h1>\n"


def shell(line: str) -> str:
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60, check=True, stdin=subprocess.DEVNULL)
    return done.stdout


def test_what_up_prints_shows_one_call_that_is_allowed_and_one_that_is_refused(tmp_path: Path) -> None:
    with NameServer() as names, Origins(tmp_path / "origins", "example.com", http_port=80) as origins:
        names["example.com"] = say(ADDRESS)
        (origins.folder / "www" / "index.html").write_text(PAGE)
        config = f'[egress]\nallow_addresses = ["{ADDRESS}/32"]\ndns_servers = ["{names.address}"]\n'
        with Wardline(tmp_path / "home", config=config) as wardline:
            wardline.up()
            lines = [line.strip() for line in wardline.said("up").splitlines()]
            (add,) = (line for line in lines if " agent add " in line)
            curls = [line.replace("curl ", "curl -sS ", 1) for line in lines if line.startswith("curl ")]
            secret = shell(add).splitlines()[-1]
            assert re.fullmatch(r"[A-Za-z0-9_-]{43}", secret)
            port = origins.http.rpartition(":")[2]  # 80, where this process may have it
            spelled = [line.replace("SECRET", secret).replace("example.com/", f"example.com:{port}/") for line in curls]
            allowed, refused = spelled
            wait_until(lambda: '"identity"' not in shell(refused), 5, "the agent is known")
            assert shell(allowed) == PAGE
            said = refusal_of(shell(refused))
            assert (said["reason"], said["policy"], said["agent"]) == ("forbid", ["no-paste-sites"], "researcher")
            assert names.lookups("pastebin.com") == 0
            # its host may not even have seen it: what `explain` says until then is to try again
            wait_until(lambda: wardline.run("explain", said["call_id"], check=False).returncode == 0, 30, "the call is stored")
            assert "no-paste-sites" in wardline.run("explain", said["call_id"]).stdout
            found = wardline.sql("SELECT host, verdict, policies FROM calls ORDER BY time")
            assert ("example.com", "allow", ["assistants-use-own-api"]) in [(a, b, list(c)) for a, b, c in found]
