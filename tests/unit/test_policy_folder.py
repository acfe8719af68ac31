"""A folder of policies: its files, `entities.json`, and every refusal of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.policy.compile import compile_set
from pipeline.policy.lex import Source
from pipeline.policy.load import load_bundle, load_set, statement
from schemas.bundle import Bundle, parse_bundle
from schemas.errors import OperatorFault
from schemas.limits import POLICY_FILE_BYTES_MAX, RESOURCE_BYTES_MAX

PERMIT = "permit(principal, action, resource);"


def uid(kind: str, name: str) -> dict[str, str]:
    return {"type": kind, "id": name}


def entity(kind: str, name: str, *parents: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"uid": uid(kind, name), "attrs": {}, "parents": list(parents), **more}


def lines(*entities: dict[str, Any]) -> str:
    """An array whose first entity stands on line 1, the second on line 2."""
    return "[" + ",\n".join(map(json.dumps, entities)) + "]"


def parents_of(text: str) -> dict[str, tuple[str, ...]]:
    return compile_set([], Source("dir/entities.json", text)).bundle.parents


def test_an_entity_is_in_its_parents() -> None:
    found = parents_of(json.dumps([entity("Agent", 'a"\n', uid("G", "z"), uid("G", "b"), uid("G", "z")), entity("N::G", "z")]))
    assert found == {'Agent::"a\\"\\n"': ('G::"b"', 'G::"z"')}


def test_a_uid_may_be_spelled_out_and_tags_may_be_empty() -> None:
    text = json.dumps([{"uid": {"__entity": uid("A", "x")}, "attrs": {}, "tags": {}, "parents": [{"__entity": uid("B", "y")}]}])
    assert parents_of(text) == {'A::"x"': ('B::"y"',)}


def test_no_entities_are_an_empty_array() -> None:
    assert parents_of(" [ \n] ") == {}


def test_a_policy_set_counts_entities_without_parents_that_its_digest_does_not_see() -> None:
    lone = compile_set([], Source("entities.json", json.dumps([entity("A", "x")])))
    assert (lone.entities, lone.bundle.digest) == (1, Bundle().digest)


LONG = "x" * RESOURCE_BYTES_MAX

REFUSALS: dict[str, tuple[str, str]] = {
    "no json": ("", '1:1: expected an array of entities, `[{"uid": ..., "attrs": {}, "parents": [...]}]`'),
    "an object": (' {"a": 1}', '1:2: expected an array of entities, `[{"uid": ..., "attrs": {}, "parents": [...]}]`'),
    "a byte order mark": ("\ufeff[]", "1:1: the file begins with a byte order mark: save it as utf-8 without one"),
    "an array that stays open": ("[", "1:2: this is not json: expecting value"),
    "an array that stays open after an entity": (
        lines(entity("A", "x"), entity("A", "y"))[:-1],
        "2:62: this is not json: expected `,` or `]` after an entity",
    ),
    "a comma at the end": (f"[\n{json.dumps(entity('A', 'x'))},\n]", "3:1: this is not json: expecting value"),
    "something after the array": ("[]\n x", "2:2: this is not json: something stands after the array"),
    "bad json inside": ('[\n  {"uid": {"type": "A" "id"}}]', "2:24: this is not json: expecting ',' delimiter"),
    "a key twice": ('[{"uid": {"type": "A", "type": "B", "id": "x"}}]', "1:2: key `type` stands twice in one object"),
    "endless nesting": ("[" * 200_000, "1:2: this entity is nested too deeply or has a number that is too long"),
    "an endless number": (f"[{'1' * 5000}]", "1:2: this entity is nested too deeply or has a number that is too long"),
    "no object": ("[1]", '1:2: an entity is an object, `{"uid": ..., "attrs": {}, "parents": [...]}`'),
    "an unknown key": (
        json.dumps([entity("A", "x", parent=[])]),
        "1:2: an entity has no key `parent`: it has `uid`, `attrs`, `parents` and `tags`",
    ),
    "no uid": ('[{"attrs": {}, "parents": []}]', "1:2: this entity has no key `uid`"),
    "no parents": (f"[{json.dumps({'uid': uid('A', 'x'), 'attrs': {}})}]", "1:2: this entity has no key `parents`"),
    "no attributes": (f"[{json.dumps({'uid': uid('A', 'x'), 'parents': []})}]", "1:2: this entity has no key `attrs`"),
    "an attribute": (
        json.dumps([entity("A", "x") | {"attrs": {"age": 1}}]),
        '1:2: `attrs` of `A::"x"` has `age`: attributes are not supported yet',
    ),
    "a tag": (json.dumps([entity("A", "x", tags={"t": "v"})]), '1:2: `tags` of `A::"x"` has `t`: tags are not supported yet'),
    "attributes that are none": (json.dumps([entity("A", "x") | {"attrs": []}]), '1:2: `attrs` of `A::"x"` is not an object'),
    "tags that are none": (json.dumps([entity("A", "x", tags=None)]), '1:2: `tags` of `A::"x"` is not an object'),
    "parents that are none": (json.dumps([entity("A", "x") | {"parents": {}}]), '1:2: `parents` of `A::"x"` is not an array'),
    "a uid as a text": (
        json.dumps([entity("A", "x") | {"uid": 'A::"x"'}]),
        '1:2: `uid` is not `{"type": "...", "id": "..."}`',
    ),
    "a uid with more": (
        json.dumps([entity("A", "x") | {"uid": {**uid("A", "x"), "z": 1}}]),
        '1:2: `uid` is not `{"type": "...", "id": "..."}`',
    ),
    "an id that is a number": (
        json.dumps([entity("A", "x") | {"uid": {"type": "A", "id": 1}}]),
        '1:2: `uid` is not `{"type": "...", "id": "..."}`',
    ),
    "a parent as a text": (
        lines(entity("A", "x", uid("G", "g")), entity("B", "y") | {"parents": ['G::"g"']}),
        '2:1: `parents[0]` is not `{"type": "...", "id": "..."}`',
    ),
    "a type that is none": (json.dumps([entity("A b", "x")]), "1:2: `uid` has type `A b`, which is no name of a type"),
    "a reserved type": (json.dumps([entity("A::in", "x")]), "1:2: `uid` has type `A::in`, which is no name of a type"),
    "a lone surrogate": (json.dumps([entity("A", "\ud800")]), "1:2: `\\ud800` has a lone surrogate: it is not valid unicode"),
    "an id that is too long": (
        json.dumps([entity("A", LONG)]),
        f'1:2: `uid` `A::"{"x" * 53}...` has {RESOURCE_BYTES_MAX + 5} bytes, limit is {RESOURCE_BYTES_MAX}',
    ),
    "an entity twice": (
        lines(entity("A", "x"), entity("A", "x", uid("G", "g"))),
        '2:1: entity `A::"x"` already stands at dir/entities.json:1:2',
    ),
    "an action in something else": (
        json.dumps([entity("Action", "x", uid("G", "g"))]),
        '1:2: `Action::"x"` is an action and `G::"g"` is none: actions are only in actions',
    ),
    "an entity in itself": (
        json.dumps([entity("A", "x", uid("A", "x"))]),
        '1:2: the hierarchy contains itself: `A::"x"` in `A::"x"`',
    ),
    "a ring": (
        lines(entity("Z", "z", uid("A", "a")), entity("A", "a", uid("B", "b")), entity("B", "b", uid("A", "a"))),
        '2:1: the hierarchy contains itself: `A::"a"` in `B::"b"` in `A::"a"`',
    ),
    "a ring through what a name implies": (
        json.dumps([entity("McpServer", "s", uid("Tool", "s/t"))]),
        '1:2: the hierarchy contains itself: `McpServer::"s"` in `Tool::"s/t"` in `McpServer::"s"`',
    ),
    "a ring through a built-in group": (
        json.dumps([entity("Action", "http", uid("Action", "http:GET"))]),
        '1:2: the hierarchy contains itself: `Action::"http"` in `Action::"http:GET"` in `Action::"http:read"` in '
        '`Action::"http"`',
    ),
    "a long ring": (
        json.dumps([entity("A", str(n), uid("A", str((n + 1) % 20))) for n in range(20)]),
        "1:2: the hierarchy contains itself: " + " in ".join(f'`A::"{n}"`' for n in range(8)) + ' in ... (12 more) in `A::"0"`',
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_an_entity_is_refused_where_it_is_wrong(name: str) -> None:
    text, message = REFUSALS[name]
    with pytest.raises(OperatorFault) as fault:
        parents_of(text)
    assert str(fault.value) == f"dir/entities.json:{message}"
    assert str(fault.value).isprintable()


def test_a_diamond_is_no_ring() -> None:
    text = json.dumps(
        [entity("A", "a", uid("A", "b"), uid("A", "c")), entity("A", "b", uid("A", "d")), entity("A", "c", uid("A", "d"))]
    )
    assert set(parents_of(text)) == {'A::"a"', 'A::"b"', 'A::"c"'}


def test_a_hierarchy_of_twenty_thousand_steps_is_checked_for_rings() -> None:
    steps = [entity("A", str(n), uid("A", str(n + 1))) for n in range(20_000)]
    assert len(parents_of(json.dumps(steps))) == 20_000
    with pytest.raises(OperatorFault, match="the hierarchy contains itself"):
        parents_of(json.dumps([*steps, entity("A", "20000", uid("A", "0"))]))


def test_a_folder_is_its_cedar_files_in_order_and_its_entities(tmp_path: Path) -> None:
    (tmp_path / "b.cedar").write_text(PERMIT)
    (tmp_path / "a.cedar").write_text(f'@id("x"){PERMIT}{PERMIT}')
    (tmp_path / "entities.json").write_text(json.dumps([entity("A", "x", uid("G", "g"))]))
    (tmp_path / "notes.txt").write_text("not a policy")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.cedar").write_text("not read")
    known = load_set(tmp_path)
    assert [rule.id for rule in known.bundle.rules] == ["x", "a.cedar#2", "b.cedar#1"]
    assert (known.policies, known.entities) == (3, 1)
    assert load_bundle(tmp_path) == known.bundle
    assert parse_bundle(known.bundle.encode()).encode() == known.bundle.encode()
    assert statement(tmp_path, known) == f"{tmp_path}: 3 policies, 1 entity, digest {known.bundle.digest}"


def test_a_missing_folder_permits_nothing(tmp_path: Path) -> None:
    assert load_bundle(tmp_path / "none") == Bundle()


@pytest.mark.parametrize("text", ["", "forbid(principal, action, resource);"])
def test_a_set_that_permits_nothing_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.cedar").write_text(text)
    said = statement(tmp_path, load_set(tmp_path))
    assert said.endswith(": nothing is permitted, so every call is refused")
    assert f"{'1 policy' if text else '0 policies'}, 0 entities" in said


def refusal(folder: Path) -> str:
    with pytest.raises(OperatorFault) as fault:
        load_bundle(folder)
    assert "\n" not in str(fault.value)
    return str(fault.value).replace(str(folder), "DIR")


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").write_text(PERMIT)
    (tmp_path / "a.cedar").symlink_to(tmp_path / "real")
    assert refusal(tmp_path) == "DIR/a.cedar: is a symbolic link: put the file itself here"


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "entities.json").mkdir()
    assert refusal(tmp_path) == "DIR/entities.json: is not a regular file"


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refusal(tmp_path / "file") == "DIR: cannot be read: not a directory"


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.cedar").write_text(PERMIT)

    def denied(path: Path, *_args: object, **_named: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))  # root may read every file, so the mode alone proves nothing

    monkeypatch.setattr(Path, "open", denied)
    assert refusal(tmp_path) == "DIR/a.cedar: cannot be read: permission denied"


def test_a_file_that_is_not_utf8_is_refused_at_its_byte(tmp_path: Path) -> None:
    (tmp_path / "a.cedar").write_bytes("// é\n// é".encode() + b"\xff\n")
    assert refusal(tmp_path) == "DIR/a.cedar:2:5: byte 0xff is not utf-8"


def test_a_file_name_that_is_not_printable_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a\nb.cedar").write_text(PERMIT)
    assert refusal(tmp_path) == "DIR: file name 'a\\nb.cedar' has a character that is not printable"


@pytest.mark.parametrize("more", [0, 1])
def test_a_file_has_at_most_four_mib(tmp_path: Path, more: int) -> None:
    (tmp_path / "a.cedar").write_bytes(b" " * (POLICY_FILE_BYTES_MAX + more))
    if more:
        assert refusal(tmp_path) == f"DIR/a.cedar: has {POLICY_FILE_BYTES_MAX + 1} bytes, limit is {POLICY_FILE_BYTES_MAX}"
    else:
        assert load_bundle(tmp_path) == Bundle()
