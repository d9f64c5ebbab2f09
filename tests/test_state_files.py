"""Our own JSON, read back: what fits, what is told and where, and what is made again."""

import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tell_plugins.core.state_files import (
    Name,
    Shape,
    cached_json,
    made_once,
    read_json,
    read_json_lines,
    write_json,
)
from tests.conftest import error_of, message_of

REMEDY = "remove the file: it is made again"


class Thing(Shape):
    name: Name
    count: int
    rate: float | None = None


GOOD = '{"name": "a", "count": 1, "rate": 2, "more": [1]}'


def test_what_fits_comes_back_as_it_is(tmp_path):
    path = tmp_path / "a.json"
    assert read_json(path, Thing, REMEDY) is None
    write_json(path, {"name": "þ\u2028", "count": 1})
    assert read_json(path, Thing, REMEDY) == {"name": "þ\u2028", "count": 1}
    write_json(path, {"name": "half \ud83d", "count": 1})
    assert read_json(path, Thing, REMEDY)["name"] == "half \ud83d"
    with pytest.raises(ValueError):
        write_json(path, {"name": "a", "count": float("nan")}, allow_nan=False)
    path.write_text(GOOD)
    assert read_json(path, Thing, REMEDY) == {"name": "a", "count": 1, "rate": 2, "more": [1]}
    (tmp_path / "b.json.xz").write_bytes(lzma.compress(GOOD.encode()))
    assert read_json(tmp_path / "b.json", Thing, REMEDY)["count"] == 1


DAMAGED = [
    ("", "no JSON"),
    ('{"name": "a",\n "count": }', "line 2: no JSON"),
    ("null", "it is None"),
    ("[]", "it is []"),
    ('{"name": "a"}', "key 'count' is missing"),
    ('{"name": "a", "count": "1"}', "key 'count' is '1'"),
    ('{"name": "a", "count": true}', "key 'count' is True"),
    ('{"name": "a", "count": 1.5}', "key 'count' is 1.5"),
    ('{"name": "a", "count": 1, "rate": NaN}', "NaN is no finite number"),
    ('{"name": "a", "count": 1, "more": -Infinity}', "-Infinity is no finite number"),
    ('{"name": "a", "count": 1, "rate": 1e999}', "1e999 is no finite number"),
    ('{"name": "../../etc", "count": 1}', "not a plain name"),
    ('{"name": "..", "count": 1}', "not a plain name"),
    ('{"name": "a\\u0000", "count": 1}', "not a plain name"),
    ('{"a":' * 100_000, "nested too deeply"),
    ("1" * 5000, "no JSON"),
]


@pytest.mark.parametrize(("text", "told"), DAMAGED, ids=range(len(DAMAGED)))
def test_damage_is_one_message(tmp_path, text, told):
    path = tmp_path / "a.json"
    path.write_text(text)
    caught = error_of(read_json, path, Thing, REMEDY)
    assert told in str(caught)
    assert str(path) in str(caught.where)
    assert caught.remedy == REMEDY
    assert cached_json(path, Thing) is None
    path.write_text(GOOD + "\n" + text.replace("\n", " ") + "\n" + GOOD + "\n")
    assert "line 2" in message_of(read_json_lines, path, Thing, REMEDY)


def test_the_trainers_files_may_hold_what_ours_may_not(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"loss": NaN}')
    assert str(read_json(path, dict[str, Any], REMEDY, foreign=True)["loss"]) == "nan"


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut": lambda content: content[: len(content) // 2],
    "another file": lambda _: b"\x93NUMPY?!{" * 9,
    "exchanged": lambda content: content[10:20] + content[:10] + content[20:],
    "longer": lambda content: content + b"\n",
}


def test_a_damaged_cache_is_made_again(tmp_path):
    path, made = tmp_path / "new" / "kept", []

    def write(target: Path) -> None:
        made.append(target)
        target.write_text("what is kept, and long enough to be cut")

    made_once(path, write)
    whole = path.read_bytes()
    for damage in DAMAGES.values():
        path.write_bytes(damage(whole))
        made_once(path, write)
        assert path.read_bytes() == whole
    made_once(path, write)
    assert len(made) == 1 + len(DAMAGES)
