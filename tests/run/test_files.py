"""Files written whole or not at all, and folders moved to free names."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxai.run.files import rename_to_free, write_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=st.dictionaries(st.text(), VALUES, max_size=4))
def test_values_come_back(value, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "values.json"
    write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == value
    assert path.read_text().endswith("\n")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    write_json(path, {"a": 3})
    assert json.loads(path.read_text()) == {"a": 3}
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_folder_takes_the_first_free_name(tmp_path):
    for number, expected in enumerate(["run.1", "run.2", "run.4"]):
        (tmp_path / "run.3").mkdir(exist_ok=True)
        folder = tmp_path / "now"
        folder.mkdir()
        (folder / "file").write_text(str(number))
        target = rename_to_free(folder, "run")
        assert target == tmp_path / expected
        assert (target / "file").read_text() == str(number)
        assert not folder.exists()
