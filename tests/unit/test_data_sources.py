import sys
import types

import pyarrow
import pyarrow.parquet
import pytest

from sparsegate.data import local_path, read_rows
from sparsegate.errors import DataError

ROWS = [{"text": "where is, my parcel", "label": "delivery"}, {"text": 'say "hi"\nthere', "label": "other"}]


def _write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_all_formats_read_the_same_rows(tmp_path):
    jsonl = _write(
        tmp_path / "a.jsonl",
        '{"text": "where is, my parcel", "label": "delivery"}\n\n{"text": "say \\"hi\\"\\nthere", "label": "other"}\n',
    )
    csv = _write(tmp_path / "a.csv", '\ufefftext,label\n"where is, my parcel",delivery\n"say ""hi""\nthere",other\n')
    parquet = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), parquet)
    assert read_rows(jsonl) == read_rows(csv) == read_rows(str(parquet)) == ROWS


def test_values_become_text_and_nulls_are_left_out(tmp_path):
    source = _write(tmp_path / "a.jsonl", '{"a": 1, "b": true, "c": null, "d": [1], "e": 1.5, "f": NaN}\n')
    assert read_rows(source) == [{"a": "1", "b": "true", "d": "[1]", "e": "1.5"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.csv", b"\n \n", "is empty"),
        ("a.parquet", b"", "is empty"),
        ("a.csv", b"text,label\n", "has no rows"),
        ("a.jsonl", b'{"a": "x"}\n{"a": "\xff"}\n', r"a\.jsonl:2: not UTF-8: byte 0xff at column 8"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl:1: must be a JSON object, got a list"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", r"a\.csv:3: has 3 values, the header has 2 names"),
        ("a.csv", b"a,a\n1,2\n", "names 'a' more than once"),
        ("a.csv", b'a,b\n"x,2\n', "not CSV"),
        ("a.parquet", b"not parquet", "can't be read as Parquet"),
        ("a.josnl", b"x", r"unknown suffix '\.josnl'; did you mean '\.jsonl'\?"),
    ],
)
def test_a_bad_file_is_one_clear_error(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        read_rows(_write(tmp_path / name, content))


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_missing_file_is_one_clear_error(tmp_path, suffix):
    with pytest.raises(DataError, match="does not exist"):
        read_rows(str(tmp_path / f"missing.{suffix}"))


def test_a_folder_is_one_clear_error(tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(DataError, match="can't be read"):
        read_rows(str(tmp_path / "a.jsonl"))


def test_an_unknown_scheme_lists_the_schemes():
    with pytest.raises(DataError, match="choices: builtin, hf"):
        read_rows("s3://bucket/file.jsonl")


def test_shipped_data_is_found_and_an_unknown_name_lists_what_ships():
    assert local_path("builtin:safety/red_team.jsonl").is_file()
    assert read_rows("builtin:safety/red_team.jsonl")
    with pytest.raises(DataError, match=r"did you mean 'safety/red_team\.jsonl'"):
        read_rows("builtin:safety/red_tem.jsonl")


def test_a_path_that_climbs_out_of_the_shipped_data_is_refused():
    with pytest.raises(DataError, match="ships with sparsegate"):
        read_rows("builtin:../pyproject.jsonl")


def test_only_the_hub_has_no_local_path(tmp_path):
    assert local_path(str(tmp_path / "a.csv")) == tmp_path / "a.csv"
    assert local_path("hf:org/name") is None


def test_a_hub_data_set_without_the_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'sparsegate\[hub\]'"):
        read_rows("hf:org/name@v1:test")


def test_a_hub_data_set_is_read_at_its_revision_and_split(monkeypatch):
    asked = []

    def load_dataset(name, **options):
        asked.append((name, options))
        return [{"text": "hello", "label": 3, "note": None}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert read_rows("hf:org/name@v1:test") == [{"text": "hello", "label": "3"}]
    assert asked == [("org/name", {"revision": "v1", "split": "test"})]


def test_a_hub_that_cannot_be_reached_is_one_clear_error(monkeypatch):
    def load_dataset(name, **options):
        raise ConnectionError("no route to host\nlong explanation")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DataError, match="can't fetch 'hf:org/name@main:train': no route to host; check"):
        read_rows("hf:org/name")
