"""The demo tells its whole story: contained and not, twice in one home, and what it leaves can be asked again."""

import subprocess

import pytest

from tests.support.contained import NO_NAMESPACES, can_contain
from tests.support.home import Wardline

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

TOLD = (
    "believes it", "403 no-permit", "403 revoked", "0 times", "rule turned", "rule stolen", "complete", "(signed) researcher",
    "second-holder", "leak", "deny-burst", "first-seen", "door-1", "door-2", "records missing (view `gaps`): 0",
    "everything happened",
)  # fmt: skip
NO_MORE = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\""
"""In a namespace of its own, in which no further one can be made."""


def test_it_is_told_twice_in_one_home_which_can_be_asked_again(wardline: Wardline) -> None:
    first = wardline.run("demo", timeout=400).stdout
    assert [part for part in TOLD if part not in first] == []
    assert ("uncontained" in first) != can_contain()
    second = wardline.run("demo", timeout=400).stdout
    assert "researcher-2" in second
    wardline.up()
    detectors = {str(name) for (name,) in wardline.sql("SELECT DISTINCT detector FROM findings WHERE state = 'open'")}
    assert {"leak", "deny-burst", "first-seen", "second-holder", "risk"} <= detectors
    revoked = wardline.sql("SELECT rule, count() FROM responses WHERE state = 'revoked' GROUP BY rule ORDER BY rule")
    assert revoked == [("stolen", 2), ("turned", 2)]
    assert wardline.sql("SELECT count() FROM gaps") == [(0,)]
    assert wardline.sql("SELECT count() FROM calls WHERE domain LIKE 'cdn-telemetry%' AND verdict = 'allow'") == [(0,)]


@pytest.mark.skipif(not can_contain(), reason=NO_NAMESPACES)
def test_it_says_that_nothing_is_contained_where_that_cannot_be(wardline: Wardline) -> None:
    words = ["unshare", "--user", "--map-root-user", "sh", "-c", NO_MORE, "sh", *wardline.words("demo")]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "user.max_user_namespaces is 0 here" in done.stdout
    assert [part for part in TOLD if part not in done.stdout] == []
