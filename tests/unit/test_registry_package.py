from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparsegate.errors import DataError, DeltaError
from sparsegate.files import sha256_bytes
from sparsegate.registry.package import ServingSpec, read_package, write_package

DELTA = b"delta bytes"
SPEC = ServingSpec(
    task="classification",
    base_source="/models/base",
    base_sha256=None,
    base_digest="b" * 64,
    labels=("refund", "crash"),
    system_prompt=None,
    max_tokens=64,
    max_new_tokens=8,
    trust_remote_code=False,
    delta_sha256=sha256_bytes(DELTA),
    sparsegate_version="0.1.0",
)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    delta = tmp_path / "trained.safetensors"
    delta.write_bytes(DELTA)
    write_package(tmp_path / "package", SPEC, delta=delta)
    return tmp_path / "package"


def test_a_package_reads_back_as_it_was_written(package: Path) -> None:
    assert read_package(package) == SPEC
    assert sorted(path.name for path in package.iterdir()) == ["delta.safetensors", "spec.json"]


def test_a_delta_other_than_the_spec_names_is_not_packed(tmp_path: Path) -> None:
    delta = tmp_path / "other.safetensors"
    delta.write_bytes(b"another delta")
    with pytest.raises(DeltaError, match="the spec names"):
        write_package(tmp_path / "package", SPEC, delta=delta)
    assert list((tmp_path / "package").iterdir()) == []


def test_a_missing_delta_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DeltaError, match="does not exist"):
        write_package(tmp_path / "package", SPEC, delta=tmp_path / "none")
    assert not (tmp_path / "package").exists()


def test_one_flipped_bit_in_the_delta_is_found(package: Path) -> None:
    (package / "delta.safetensors").write_bytes(bytes([DELTA[0] ^ 1]) + DELTA[1:])
    with pytest.raises(DeltaError, match="changed or mixed up"):
        read_package(package)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 1"),
        ({"surprise": 1}, "unknown fields: .*surprise"),
        ({"task": "ranking"}, "task must be"),
        ({"labels": "refund"}, "labels must be"),
        ({"labels": [1]}, "labels must be"),
        ({"max_tokens": 0}, "max_tokens must be"),
        ({"max_tokens": True}, "max_tokens must be"),
        ({"base_source": None}, "base_source must be"),
        ({"base_digest": ""}, "base_digest must be"),
        ({"system_prompt": 3}, "system_prompt must be"),
        ({"trust_remote_code": "yes"}, "trust_remote_code must be"),
    ],
)
def test_a_spec_with_a_wrong_field_is_refused_by_name(package: Path, change: dict[str, Any], message: str) -> None:
    path = package / "spec.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=message):
        read_package(package)


def test_a_spec_without_a_field_is_refused_by_name(package: Path) -> None:
    values = json.loads((package / "spec.json").read_text())
    del values["base_digest"]
    (package / "spec.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="base_digest"):
        read_package(package)


def test_a_package_with_a_file_too_many_is_refused(package: Path) -> None:
    (package / "extra.py").write_text("")
    with pytest.raises(DataError, match=r"extra\.py"):
        read_package(package)


def test_a_package_that_links_elsewhere_is_refused(package: Path, tmp_path: Path) -> None:
    (package / "delta.safetensors").unlink()
    (package / "delta.safetensors").symlink_to(tmp_path / "trained.safetensors")
    with pytest.raises(DataError, match="plain file"):
        read_package(package)


def test_a_missing_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_package(tmp_path / "none")


def test_writing_again_replaces_delta_and_spec(package: Path, tmp_path: Path) -> None:
    delta = tmp_path / "second.safetensors"
    delta.write_bytes(b"second")
    second = replace(SPEC, delta_sha256=sha256_bytes(b"second"))
    write_package(package, second, delta=delta)
    assert read_package(package) == second
