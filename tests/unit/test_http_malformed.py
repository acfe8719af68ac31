"""The table of requests that are refused for their form, and the same rules for bodies: each with its status and its word."""

import re

import pytest

from enforcers.core.http.fields import ONCE
from enforcers.core.http.framing import CHUNKED, Body
from enforcers.core.http.head import BadAnswer, BadRequest
from schemas.errors import AgentFault, PeerFault
from tests.support.data import REPOSITORY
from tests.support.httpfuzz import read_request
from tests.support.malformed import BODIES, CREDENTIAL, BadBody, Malformed, table

TABLE = table()


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_a_request_with_two_readings_is_refused(case: Malformed) -> None:
    with pytest.raises(BadRequest) as caught:
        read_request(case.data)
    assert (case.code, case.status) == (caught.value.code, caught.value.status)


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_a_message_is_one_line_without_a_secret(case: Malformed) -> None:
    with pytest.raises(AgentFault) as caught:
        read_request(case.data)
    said = str(caught.value)
    assert said.isprintable()
    assert not said.endswith(".")
    assert len(said) < 200
    assert "secret" not in said
    assert CREDENTIAL.split()[1].decode() not in said


def test_the_table_is_long_and_names_each_case_once() -> None:
    assert len(TABLE) >= 60
    assert len({case.name for case in TABLE}) == len(TABLE)
    assert len({case.data for case in TABLE}) == len(TABLE)


def feed_all(body: Body, data: bytes, step: int) -> None:
    for at in range(0, len(data), step):
        body.feed(data[at : at + step])


@pytest.mark.parametrize("case", BODIES, ids=lambda case: case.name)
@pytest.mark.parametrize("fault", [BadRequest, BadAnswer])
def test_a_body_with_two_readings_is_refused_wherever_it_is_cut(
    case: BadBody, fault: type[BadRequest] | type[BadAnswer]
) -> None:
    for step in (1, 7, len(case.data)):
        body = Body(CHUNKED, fault)
        with pytest.raises(fault) as caught:
            feed_all(body, case.data, step)
        assert isinstance(caught.value, PeerFault) == (fault is BadAnswer)
        assert case.code == caught.value.code, f"in steps of {step}"
        assert not body.done


def test_the_page_names_every_code_and_no_other() -> None:
    source = "".join(path.read_text() for path in (REPOSITORY / "enforcers" / "core" / "http").glob("*.py"))
    codes = set(re.findall(r'(?:BadRequest|BadAnswer|BadName|[fF]ault)\(\s*"([a-z-]+)"', source))
    codes |= set(re.findall(r'return "([a-z-]+)", "the head', source)) | {code for code, _ in ONCE.values()}
    assert {case.code for case in TABLE} | {case.code for case in BODIES} <= codes
    page = (REPOSITORY / "docs" / "http.md").read_text()
    rows = re.findall(r"^\| (`[^|]*`) \|", page, re.MULTILINE)
    named = {code for row in rows for code in re.findall(r"`([a-z0-9-]+)`", row)}
    assert codes - {"status-line", "switch", "proxy-status"} == named
    assert all(f"`{code}`" in page for code in codes)
