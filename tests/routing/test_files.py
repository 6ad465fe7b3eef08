import copy
import stat

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.errors import InputError
from routing.files import LARGEST, parse_json, read_text, read_yaml, write_atomically
from routing.fleet import Fleet
from routing.load import Load
from routing.schema import validated
from routing.table import RoutingTable

KEYS = st.one_of(st.text(max_size=5), st.integers(), st.booleans(), st.none(), st.floats())
VALUES = st.recursive(
    st.one_of(KEYS, st.dates(), st.binary(max_size=3), st.just(10**400)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=5,
)


def is_one_line(read):
    """Whether it reads, or says in a line why not."""
    try:
        read()
    except InputError as error:
        return str(error).isprintable() and len(str(error)) < 500
    return True


@settings(max_examples=100)
@given(st.sampled_from([Fleet, Load, RoutingTable]), VALUES)
def test_any_content_is_one_or_an_input_error_of_one_line(model, content):
    assert is_one_line(lambda: validated(model, content))


@settings(max_examples=100)
@given(data=st.data())
def test_any_change_of_a_fleet_is_one_or_an_input_error_of_one_line(examples, data):
    content = copy.deepcopy(yaml.safe_load((examples / "fleet.yaml").read_text()))
    place, trail = content, []
    while True:
        key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
        trail.append(str(key))
        if not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(VALUES)
    assert is_one_line(lambda: validated(Fleet, content))


@given(st.binary(max_size=40))
def test_any_bytes_are_content_or_an_input_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "file"
    path.write_bytes(data)
    for read in (read_yaml, lambda path: parse_json(read_text(path))):
        assert is_one_line(lambda read=read: read(path))


def test_a_file_without_end_is_refused(tmp_path):
    path = tmp_path / "fleet.yaml"
    with path.open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(InputError, match="has more than 16 MiB"):
        read_yaml(path)


def test_a_file_keeps_its_permissions_when_it_is_replaced(tmp_path):
    path = tmp_path / "table.json"
    write_atomically(path, "one")
    path.chmod(0o640)
    write_atomically(path, "two")
    assert path.read_text() == "two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [file.name for file in tmp_path.iterdir()] == ["table.json"]
