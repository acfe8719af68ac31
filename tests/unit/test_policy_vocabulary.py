"""What entities are called, which texts are uids, and what is in what by its name alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import vocabulary
from schemas.errors import AgentFault
from schemas.limits import NAME_BYTES_MAX, RESOURCE_BYTES_MAX, STRING_BYTES_MAX

UIDS = {
    'Agent::"a"': vocabulary.agent_uid("a"),
    'Agent::"o\'brien \\"x\\" \\\\"': vocabulary.agent_uid("o'brien \"x\" \\"),
    'User::"é\\n\\u{1f}\\u{85}"': vocabulary.user_uid("é\n\x1f\x85"),
    'Service::"s"': vocabulary.service_uid("s"),
    'Action::"http:GET"': vocabulary.action_uid("http:GET"),
    'McpServer::"s"': vocabulary.server_uid("s"),
    'Tool::"slack/<empty-function-name>"': vocabulary.tool_uid("slack", "<empty-function-name>"),
    'Tool::"s/a/b"': vocabulary.tool_uid("s", "a/b"),
    'Host::"www.example.com:443"': vocabulary.host_uid("WWW.Example.com.", 443),
    'Host::"10.0.0.1:80"': vocabulary.host_uid("10.0.0.1", 80),
    'Host::"[::1]:65535"': vocabulary.host_uid("0:0:0:0:0:0:0:1", 65535),
    'Host::"[2001:db8::1]:1"': vocabulary.host_uid("[2001:DB8::0001]", 1),
    'Host::"_dns.xn--bcher-kva.example:853"': vocabulary.host_uid("_dns.xn--bcher-kva.example", 853),
}


@pytest.mark.parametrize("expected", UIDS, ids=ascii)
def test_every_entity_has_one_name(expected: str) -> None:
    assert expected == UIDS[expected]
    kind, name = vocabulary.parse_uid(expected)
    assert expected == vocabulary.entity_uid(kind, name)


NO_NAMES = {
    "agent is empty": lambda: vocabulary.agent_uid(""),
    f"agent `{'é' * 57}...` has {NAME_BYTES_MAX + 2} bytes, limit is {NAME_BYTES_MAX}": lambda: vocabulary.agent_uid(
        "é" * (NAME_BYTES_MAX // 2 + 1)
    ),
    "user is empty": lambda: vocabulary.user_uid(""),
    "service is empty": lambda: vocabulary.service_uid(""),
    "action is empty": lambda: vocabulary.action_uid(""),
    "`http:read` is a group of actions, no action of a call": lambda: vocabulary.action_uid("http:read"),
    "`mcp` is a group of actions, no action of a call": lambda: vocabulary.action_uid("mcp"),
    "server is empty": lambda: vocabulary.tool_uid("", "t"),
    "tool is empty": lambda: vocabulary.tool_uid("s", ""),
    "server `a/b` has a `/`, which separates a server from its tool": lambda: vocabulary.tool_uid("a/b", "c"),
    "`\\ud800` has a lone surrogate: it is not valid unicode": lambda: vocabulary.agent_uid("\ud800"),
    "host is empty": lambda: vocabulary.host_uid(".", 80),
    "port `0` is not in 1..65535": lambda: vocabulary.host_uid("a", 0),
    "port `65536` is not in 1..65535": lambda: vocabulary.host_uid("a", 65536),
    "host `bücher.example` is not ascii: write it as its dns label `xn--...`": lambda: vocabulary.host_uid("bücher.example", 1),
    "host `\u212a.com` is not ascii: write it as its dns label `xn--...`": lambda: vocabulary.host_uid("\u212a.com", 1),
    "host `a:b` is no name and no ipv6 address": lambda: vocabulary.host_uid("a:b", 1),
    "host `fe80::1%eth0` has a character that no host name has": lambda: vocabulary.host_uid("fe80::1%eth0", 1),
    "host `a b` has a character that no host name has": lambda: vocabulary.host_uid("a b", 1),
    "host `[a]` has a character that no host name has": lambda: vocabulary.host_uid("[a]", 1),
    f"host `{'a' * 57}...` has {RESOURCE_BYTES_MAX + 1} bytes, limit is {RESOURCE_BYTES_MAX}": lambda: vocabulary.host_uid(
        "a" * (RESOURCE_BYTES_MAX - 3), 443
    ),
}


@pytest.mark.parametrize("message", NO_NAMES)
def test_a_name_that_is_none_is_refused(message: str) -> None:
    with pytest.raises(AgentFault) as fault:
        NO_NAMES[message]()
    assert message == str(fault.value)


def test_two_tools_never_have_one_uid() -> None:
    """The server ends at the first `/`, so a server with a `/` in its name could claim another's tool."""
    with pytest.raises(AgentFault):
        vocabulary.tool_uid("a/b", "c")
    assert vocabulary.implied_parents(vocabulary.tool_uid("a", "b/c")) == ('McpServer::"a"',)


IMPLIED = {
    'Tool::"s/t"': ('McpServer::"s"',),
    'Tool::"s/a/b"': ('McpServer::"s"',),
    'Tool::"q\\"/t"': ('McpServer::"q\\""',),
    'Tool::"s"': (),
    'Tool::"/t"': (),
    'N::Tool::"s/t"': (),
    'Host::"www.example.co.uk:443"': ('Domain::"example.co.uk"',),
    'Host::"EXAMPLE.com.:80"': ('Domain::"example.com"',),
    'Host::"a.b.github.io:443"': ('Domain::"b.github.io"',),
    'Host::"github.io:443"': (),
    'Host::"co.uk:443"': (),
    'Host::"localhost:80"': (),
    'Host::"db.corp.internal:5432"': ('Domain::"corp.internal"',),
    'Host::"10.0.0.1:80"': (),
    'Host::"1.2.3:80"': (),
    'Host::"0x7f.0x1:80"': (),
    'Host::"[2001:db8::1]:443"': (),
    'Host::"\u212aelvin.com:443"': (),
    'Host::"a..com:443"': (),
    'Host::"example.com"': (),
    'Action::"http:GET"': ('Action::"http:read"',),
    'Action::"http:HEAD"': ('Action::"http:read"',),
    'Action::"http:POST"': ('Action::"http:write"',),
    'Action::"http:CONNECT"': ('Action::"http:write"',),
    'Action::"http:get"': ('Action::"http:write"',),
    'Action::"http:PROPFIND"': ('Action::"http:write"',),
    'Action::"http:read"': ('Action::"http"',),
    'Action::"http:write"': ('Action::"http"',),
    'Action::"http:"': (),
    'Action::"http"': (),
    'Action::"mcp:tools/call"': ('Action::"mcp"',),
    'Action::"mcp:"': (),
    'Action::"mcp"': (),
    'Action::"tcp:CONNECT"': (),
    'N::Action::"http:GET"': (),
    'Agent::"s/t"': (),
    'Tool::"s\\u{2f}t"': (),
    'Tool::"s/t': (),
    "Tool": (),
    "": (),
    'Tool::"s/' + "t" * STRING_BYTES_MAX + '"': (),
}


@pytest.mark.parametrize("uid", IMPLIED, ids=lambda uid: ascii(uid)[:40])
def test_a_name_implies_what_contains_it(uid: str) -> None:
    assert IMPLIED[uid] == vocabulary.implied_parents(uid)


@given(st.text(), st.sampled_from(["Tool", "Host", "Action", "Agent"]))
def test_whatever_stands_in_a_uid_implies_at_most_one_parent_and_raises_nothing(name: str, kind: str) -> None:
    for uid in (f'{kind}::"{name}"', vocabulary.entity_uid(kind, name), f"{kind}::{name}"):
        parents = vocabulary.implied_parents(uid)
        assert len(parents) <= 1
        for parent in parents:
            vocabulary.parse_uid(parent)
            assert vocabulary.implied_parents(parent) != (uid,)


@given(st.text(st.characters(codec="utf-8")))
def test_a_name_survives_its_quotes(name: str) -> None:
    quoted = vocabulary.quote(name)
    assert name == vocabulary.unquote(quoted[1:-1])
    assert vocabulary.parse_uid(f"Agent::{quoted}") == ("Agent", name)
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in quoted)


@pytest.mark.parametrize("text", ["in", "A::has", "__cedar", "A::__cedar::B", "", "A::", "::A", "A b", "1A", "Ä", "A:B", "A\n"])
def test_what_is_no_type_name(text: str) -> None:
    assert not vocabulary.is_type_name(text)
    with pytest.raises(AgentFault) as fault:
        vocabulary.parse_uid(f'{text}::"x"')
    assert str(fault.value).isprintable()


def test_a_long_text_that_is_no_uid_is_cut_in_the_message() -> None:
    with pytest.raises(AgentFault) as fault:
        vocabulary.parse_uid("x" * 10_000)
    assert str(fault.value) == f'`{"x" * 57}...` is no entity uid: one is written `Type::"id"`'
