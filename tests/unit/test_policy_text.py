"""Policy files: what is accepted and what it means, and every refusal with its place."""

import contextlib
import dataclasses
import tracemalloc

import pytest

from pipeline.policy.compile import compile_set
from pipeline.policy.lex import Source
from schemas.bundle import Constraint, Rule
from schemas.errors import OperatorFault
from schemas.limits import MIB, NAME_BYTES_MAX, RESOURCE_BYTES_MAX

ANY: Constraint = ("any",)


def rules(*texts: str) -> list[Rule]:
    files = [Source(f"dir/{'abc'[number]}.cedar", text) for number, text in enumerate(texts)]
    return list(compile_set(files).bundle.rules)


def scope(text: str) -> tuple[Constraint, Constraint, Constraint]:
    (rule,) = rules(f"permit({text});")
    return rule.principal, rule.action, rule.resource


SCOPES: dict[str, tuple[str, tuple[Constraint, Constraint, Constraint]]] = {
    "nothing asked": ("principal, action, resource", (ANY, ANY, ANY)),
    "equality": (
        'principal == Agent::"a", action == Action::"x", resource == Tool::"s/t"',
        (("==", 'Agent::"a"'), ("==", 'Action::"x"'), ("==", 'Tool::"s/t"')),
    ),
    "membership": (
        'principal in G::"g", action in Action::"mcp", resource in McpServer::"s"',
        (("in", 'G::"g"'), ("in", 'Action::"mcp"'), ("in", 'McpServer::"s"')),
    ),
    "types": ("principal is Agent, action, resource is N::Tool", (("is", "Agent"), ANY, ("is", "N::Tool"))),
    "a type and membership": (
        'principal is Agent in G::"g", action, resource is Tool in S::"s"',
        (("is in", "Agent", 'G::"g"'), ANY, ("is in", "Tool", 'S::"s"')),
    ),
    "a list of actions, sorted and each once": (
        'principal, action in [Action::"b", Action::"a", Action::"b"], resource',
        (ANY, ("in any", 'Action::"a"', 'Action::"b"'), ANY),
    ),
    "a list of one is that one": ('principal, action in [Action::"a"], resource', (ANY, ("in", 'Action::"a"'), ANY)),
    "an empty list": ("principal, action in [], resource", (ANY, ("in any",), ANY)),
    "commas at the end": ('principal, action in [Action::"a",], resource,', (ANY, ("in", 'Action::"a"'), ANY)),
    "parentheses": (
        'principal == ((A::"a")), action in (Action::"x"), resource',
        (("==", 'A::"a"'), ("in", 'Action::"x"'), ANY),
    ),
    "space around the colons": ('principal == A :: B :: "a", action, resource', (("==", 'A::B::"a"'), ANY, ANY)),
    "namespaces of actions": ('principal, action == N::Action::"x", resource', (ANY, ("==", 'N::Action::"x"'), ANY)),
    "words that are not reserved": (
        'principal == permit::when::"x", action, resource',
        (("==", 'permit::when::"x"'), ANY, ANY),
    ),
    "comments and odd white space": (
        "// ;\nprincipal//\r\n,\u00a0action\u2003, // ) \n resource // last\n",
        (ANY, ANY, ANY),
    ),
    "a comment that a carriage return ends": ("principal, action // c\r, resource", (ANY, ANY, ANY)),
    "every escape, in its one spelling": (
        r"""principal == A::"\0\t\n\r\"\'\\\x7f\x41\u{e9}\u{1_F600}\u{1F}", action, resource""",
        (("==", 'A::"\\0\\t\\n\\r\\"\'\\\\\\u{7f}Aé😀\\u{1f}"'), ANY, ANY),
    ),
    "a line break in a string": ('principal == A::"a\nb", action, resource', (("==", 'A::"a\\nb"'), ANY, ANY)),
}


@pytest.mark.parametrize("name", SCOPES)
def test_a_scope_means_what_cedar_means_by_it(name: str) -> None:
    text, expected = SCOPES[name]
    assert expected == scope(text)


def test_effects_and_ids() -> None:
    assert rules('permit(principal,action,resource);@note("n")@id("two")@if forbid(principal,action,resource);') == [
        Rule(id="a.cedar#1", forbid=False),
        Rule(id="two", forbid=True),
    ]


def test_default_ids_count_in_each_file_and_every_policy_counts() -> None:
    one = "permit(principal,action,resource);"
    found = rules(f'@id("x"){one}{one}', f"{one}{one}")
    assert [rule.id for rule in found] == ["x", "a.cedar#2", "b.cedar#1", "b.cedar#2"]


def test_a_file_may_be_empty() -> None:
    assert rules("", " // nothing\n") == []


def test_equal_meaning_has_one_digest() -> None:
    one = compile_set([Source("a.cedar", '@id("x") permit(principal == A::"a", action in [Action::"a"], resource,);')])
    two = compile_set(
        [Source("b.cedar", '// other\n@id("x")@note("n")permit(principal==A::"\\x61",action in Action::"a",resource);')]
    )
    other = compile_set([Source("a.cedar", '@id("x") forbid(principal == A::"a", action in [Action::"a"], resource,);')])
    assert one.bundle.digest == two.bundle.digest != other.bundle.digest


OK = "(principal, action, resource)"
LONG = "x" * (NAME_BYTES_MAX + 1)
LONG_UID = "x" * RESOURCE_BYTES_MAX

REFUSALS: dict[str, tuple[str, str]] = {
    "a `when` condition": (f"permit{OK}\nwhen {{ true }};", "2:1: conditions (`when`) are not supported yet"),
    "an `unless` condition, whatever is in it": (f"permit{OK} unless ' ;", "1:37: conditions (`unless`) are not supported yet"),
    "a template": (
        "permit(principal == ?principal, action, resource);",
        "1:21: templates (`?principal`) are not supported yet",
    ),
    "a template in `in`": (
        "permit(principal, action, resource in ?resource);",
        "1:39: templates (`?resource`) are not supported yet",
    ),
    "a template in `is in`": (
        "permit(principal is A in ?principal, action, resource);",
        "1:26: templates (`?principal`) are not supported yet",
    ),
    "a template for a type": ("permit(principal is ?p, action, resource);", "1:21: templates (`?p`) are not supported yet"),
    "another effect": (f"allow{OK};", "1:1: expected `permit` or `forbid`, found `allow`"),
    "a capital effect": (f"\n  Permit{OK};", "2:3: expected `permit` or `forbid`, found `Permit`"),
    "a string for an effect": ('"permit"', '1:1: expected `permit` or `forbid`, found `"permit"`'),
    "only an annotation": ('@id("x")', "1:9: expected `permit` or `forbid`, found the end of the file"),
    "no parenthesis": ("permit principal", "1:8: expected `(` after `permit`, found `principal`"),
    "no semicolon": (f"permit{OK}", "1:36: expected `;` after the policy, found the end of the file"),
    "something after the scope": (f"permit{OK} where", "1:37: expected `;` after the policy, found `where`"),
    "one semicolon too many": (f"permit{OK};;", "1:37: expected `permit` or `forbid`, found `;`"),
    "an empty scope": ("permit();", "1:8: the scope has no `principal`: it is `(principal, action, resource)`"),
    "no action": ("permit(principal);", "1:17: the scope has no `action`: it is `(principal, action, resource)`"),
    "no resource": ("permit(principal, action);", "1:25: the scope has no `resource`: it is `(principal, action, resource)`"),
    "no resource after a comma": (
        "permit(principal, action,);",
        "1:26: the scope has no `resource`: it is `(principal, action, resource)`",
    ),
    "another order": (
        "permit(principal, resource, action);",
        "1:19: expected `action`, found `resource`: a scope is `(principal, action, resource)`",
    ),
    "a fourth variable": (
        "permit(principal, action, resource, context);",
        "1:37: expected `)` at the end of the scope, found `context`",
    ),
    "no comma": ("permit(principal action, resource);", "1:18: expected `,` before `action`, found `action`"),
    "a colon": ("permit(principal: A, action, resource);", "1:17: a scope has no `:`: write `principal is Type`"),
    "inequality": (
        'permit(principal != A::"a", action, resource);',
        "1:18: `!=` is no test that a scope can have: write `==`, `in`, `is` or `is ... in`",
    ),
    "one equals sign": (
        'permit(principal = A::"a", action, resource);',
        "1:18: `=` is no test that a scope can have: write `==`, `in`, `is` or `is ... in`",
    ),
    "like": (
        'permit(principal, action, resource like "x");',
        "1:36: `like` is no test that a scope can have: write `==`, `in`, `is` or `is ... in`",
    ),
    "`is` for an action": (
        "permit(principal, action is A, resource);",
        "1:26: `is` is no test for the action: write `==` or `in`",
    ),
    "`is` with an entity": (
        'permit(principal is A::"a", action, resource);',
        "1:21: `is` takes a type, and this is an entity: write `principal ==`",
    ),
    "`is` and `==`": (
        'permit(principal is A == A::"a", action, resource);',
        "1:23: `is` and `==` do not go together: the entity says its type",
    ),
    "`is` after `in`": (
        'permit(principal in G::"g" is A, action, resource);',
        "1:28: `is` stands before `in`: write `is Type in Entity`",
    ),
    "`is` of nothing": ("permit(principal is, action, resource);", "1:20: expected an entity type after `is`, found `,`"),
    "`==` to nothing": (
        "permit(principal ==, action, resource);",
        "1:20: expected an entity to compare `principal` with, found `,`",
    ),
    "a list of principals": (
        'permit(principal in [A::"a"], action, resource);',
        "1:21: a list is for actions only: write one policy for each entity of `principal`",
    ),
    "`==` to a list": (
        'permit(principal, action == [Action::"a"], resource);',
        "1:29: expected an entity to compare `action` with, found `[`",
    ),
    "a list in a list": (
        'permit(principal, action in [[Action::"a"]], resource);',
        "1:30: expected an entity to compare `action` with, found `[`",
    ),
    "a list without commas": (
        'permit(principal, action in [Action::"a" Action::"b"], resource);',
        "1:42: expected `]` at the end of the list, found `Action`",
    ),
    "a list that does not end": (
        'permit(principal, action in [Action::"a",',
        "1:42: expected an entity to compare `action` with, found the end of the file",
    ),
    "a string for an entity": (
        'permit(principal == "a", action, resource);',
        '1:21: `"a"` is a string: an entity is written `Type::"id"`',
    ),
    "a type for an entity": (
        "permit(principal in A::B, action, resource);",
        '1:21: `A::B` is a type: an entity is written `Type::"id"`',
    ),
    "a number": (
        "permit(principal == 12, action, resource);",
        "1:21: expected an entity to compare `principal` with, found `12`",
    ),
    "colons that lead nowhere": (
        "permit(principal == A::, action, resource);",
        "1:24: expected a name or a string after `::`, found `,`",
    ),
    "a reserved word in a type": (
        'permit(principal == A::in::"a", action, resource);',
        "1:24: `in` is a reserved word and names no type",
    ),
    "a reserved namespace": (
        "permit(principal is __cedar, action, resource);",
        "1:21: `__cedar` is a reserved word and names no type",
    ),
    "another type for an action": (
        'permit(principal, action == Tool::"a", resource);',
        "1:29: an action has the type `Action`, not `Tool`",
    ),
    "another type in a list of actions": (
        'permit(principal, action in [Action::"a", N::Act::"b"], resource);',
        "1:43: an action has the type `Action`, not `N::Act`",
    ),
    "a parenthesis that stays open": (
        'permit(principal == (A::"a", action, resource);',
        "1:28: expected `)` after the entity, found `,`",
    ),
    "an entity that is too long": (
        f'permit(principal == A::"{LONG_UID}", action, resource);',
        f'1:21: entity `A::"{"x" * 53}...` has {RESOURCE_BYTES_MAX + 5} bytes, limit is {RESOURCE_BYTES_MAX}',
    ),
    "a string that stays open": ('permit(principal == A::"a, action, resource);', "1:24: this string has no closing quote"),
    "an escape at the end of a line": (
        'permit(principal == A::"a\\\n", action, resource);',
        "1:24: this string has no closing quote",
    ),
    "single quotes": ("permit(principal == A::'a', action, resource);", "1:24: a string stands in double quotes"),
    "an unknown escape": (
        'permit(principal == A::"ab\\q", action, resource);',
        "1:27: `\\q` is no escape that a string may have",
    ),
    "a pattern's escape": (
        'permit(principal == A::"\\*", action, resource);',
        "1:25: `\\*` is no escape that a string may have",
    ),
    "a byte above ascii": (
        'permit(principal == A::"\\x80", action, resource);',
        "1:25: `\\x80` is no escape that a string may have",
    ),
    "half a byte": ('permit(principal == A::"\\x4", action, resource);', "1:25: `\\x4` is no escape that a string may have"),
    "an escape of a control character": (
        'permit(principal == A::"\\\x1f", action, resource);',
        "1:25: `\\\\x1f` is no escape that a string may have",
    ),
    "a surrogate": (
        'permit(principal == A::"\\u{d800}", action, resource);',
        "1:25: `\\u{d800}` is no escape that a string may have",
    ),
    "beyond unicode": (
        'permit(principal == A::"\\u{110000}", action, resource);',
        "1:25: `\\u{110000}` is no escape that a string may have",
    ),
    "a code point of nothing": (
        'permit(principal == A::"\\u{}", action, resource);',
        "1:25: `\\u{}` is no escape that a string may have",
    ),
    "a code point that starts with `_`": (
        'permit(principal == A::"\\u{_1}", action, resource);',
        "1:25: `\\u{_1}` is no escape that a string may have",
    ),
    "a bare carriage return": (
        'permit(principal == A::"a\rb", action, resource);',
        "1:26: a string has a bare carriage return: write `\\r`",
    ),
    "a byte order mark": ("\ufeffpermit", "1:1: the file begins with a byte order mark: save it as utf-8 without one"),
    "a letter that is not ascii": ('permit(principal == Ä::"a", action, resource);', "1:21: `Ä` is nothing that Cedar knows"),
    "a control character": ("permit\x00", "1:7: `\\x00` is nothing that Cedar knows"),
    "a comment of another language": (f"/* c */ permit{OK};", "1:1: expected `permit` or `forbid`, found `/`"),
    "an annotation without a name": (f'@"x" permit{OK};', '1:2: expected the name of an annotation after `@`, found `"x"`'),
    "an annotation of nothing": (f"@id() permit{OK};", "1:5: expected a string as the value of `@id`, found `)`"),
    "an annotation of two": (f'@id("a", "b") permit{OK};', "1:8: expected `)` after the value of `@id`, found `,`"),
    "an annotation twice": (f'@id("a")\n@id("a") permit{OK};', "2:1: annotation `@id` stands twice on one policy"),
    "an id without a value": (f"@id permit{OK};", '1:1: `@id` is empty: write `@id("name")`'),
    "an empty id": (f'@id("") permit{OK};', '1:1: `@id` is empty: write `@id("name")`'),
    "an id with a control character": (f'@id("a\\u{{1f}}b") permit{OK};', "1:1: policy id `a\\x1fb` has a control character"),
    "an id that is too long": (
        f'@id("{LONG}") permit{OK};',
        f"1:1: policy id `{'x' * 57}...` has {NAME_BYTES_MAX + 1} bytes, limit is {NAME_BYTES_MAX}",
    ),
    "an id twice": (f'@id("a") permit{OK};\n @id("a") permit{OK};', "2:2: policy id `a` already stands at dir/a.cedar:1:10"),
    "a default id that is taken": (
        f'@id("a.cedar#2") permit{OK};\npermit{OK};',
        "2:1: policy id `a.cedar#2` already stands at dir/a.cedar:1:18",
    ),
    "columns are characters": (f'@n("é😀")\t, permit{OK};', "1:10: expected `permit` or `forbid`, found `,`"),
    "a text that is too long to show": (f"{'y' * 70}", f"1:1: expected `permit` or `forbid`, found `{'y' * 57}...`"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_policy_is_refused_where_it_is_wrong(name: str) -> None:
    text, message = REFUSALS[name]
    with pytest.raises(OperatorFault) as fault:
        rules(text)
    assert str(fault.value) == f"dir/a.cedar:{message}"


def test_the_first_file_with_an_error_is_named() -> None:
    with pytest.raises(OperatorFault, match=r"^dir/b\.cedar:2:7: "):
        rules(f"permit{OK};", "\npermit", "forbid")


def test_an_id_twice_in_two_files_names_both() -> None:
    with pytest.raises(OperatorFault, match=r"^dir/b\.cedar:1:1: policy id `x` already stands at dir/a\.cedar:1:10$"):
        rules(f'@id("x") permit{OK};', f'@id("x") permit{OK};')


def test_a_set_has_at_most_policies_max(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.policy.check.POLICIES_MAX", 2)
    assert len(rules(f"permit{OK};" * 2)) == 2
    with pytest.raises(OperatorFault, match=r"^dir/b\.cedar:1:1: this is policy 3 of the set, limit is 2$"):
        rules(f"permit{OK};" * 2, f"permit{OK};")


def test_every_message_is_one_line() -> None:
    for text, _ in REFUSALS.values():
        with pytest.raises(OperatorFault) as fault:
            rules(text)
        assert str(fault.value).isprintable()
        assert not str(fault.value).endswith(".")


def test_a_rule_has_no_field_that_the_compiler_leaves_out() -> None:
    assert {field.name for field in dataclasses.fields(Rule)} == {"id", "forbid", "principal", "action", "resource"}


LARGE = ('permit(principal == A::"' + "a" * MIB, "// note\n" * (MIB // 8), '@a("' + "\\n" * (MIB // 2))


@pytest.mark.parametrize("text", LARGE, ids=("a string", "comments", "escapes"))
def test_a_large_file_is_read_in_memory_of_its_own_size(text: str) -> None:
    """A pattern that can go back keeps a state for every character: 200 bytes and more for each."""
    source = Source("a.cedar", text)
    tracemalloc.start()
    try:
        with contextlib.suppress(OperatorFault):
            compile_set([source])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * MIB
