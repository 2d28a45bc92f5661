"""The wheel: what is in it, what is not, and that the tests run against it when it is installed."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import sparsegate
import sparsegate_gates

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, built by the backend that pyproject.toml names."""
    pytest.importorskip("hatchling", reason="the build backend is not installed here; tox installs it")
    folder = tmp_path_factory.mktemp("wheel")
    code = f"import hatchling.build; hatchling.build.build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        yield archive


@pytest.fixture(scope="module")
def names(wheel):
    return set(wheel.namelist())


def test_every_module_of_both_packages_is_in_the_wheel(names):
    for source in (ROOT / "src", ROOT / "gates"):
        assert {path.relative_to(source).as_posix() for path in source.rglob("*.py")} <= names


def test_files_that_are_read_at_run_time_are_in_the_wheel(names):
    packaged = {
        path.relative_to(source).as_posix()
        for source in (ROOT / "src", ROOT / "gates")
        for pattern in ("*.yaml", "*.json", "*.css", "*.template", "*.safetensors", "py.typed")
        for path in source.rglob(pattern)
    }
    assert {"sparsegate/py.typed", "sparsegate_gates/py.typed", "sparsegate_gates/policies/strict.yaml"} <= packaged
    assert {"sparsegate/reports/page.css", "sparsegate/templates/gitignore.template"} <= packaged
    assert packaged <= names


def test_the_shipped_data_is_in_the_wheel(names):
    # without what Python leaves beside check.py when a test beside this one runs it
    files = [path for path in (ROOT / "data").glob("*/*.*") if path.parent.name != "__pycache__"]
    data = {path.relative_to(ROOT / "data").as_posix() for path in files}
    assert {f"sparsegate/shipped_data/{name}" for name in (*data, "manifest.json")} <= names


def test_nothing_else_is_in_the_wheel(names):
    allowed = ("sparsegate/", "sparsegate_gates/", f"sparsegate-{sparsegate.__version__}.dist-info/")
    assert [name for name in names if not name.startswith(allowed)] == []
    unwanted = re.compile(r"(^|/)(tests?|__pycache__|check\.py|\.tox)(/|$)|\.(pyc|safetensors|gguf|bin|db)$")
    heads = "sparsegate_gates/judges/embedded.safetensors"  # a few kilobytes
    assert [name for name in names - {heads} if unwanted.search(name)] == []


def test_the_wheel_names_version_licence_and_command(wheel):
    info = f"sparsegate-{sparsegate.__version__}.dist-info"
    metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
    assert metadata["Version"] == sparsegate.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
    assert "sparsegate = sparsegate.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()


def test_every_requirement_is_pinned_within_its_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pinned = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    wanted = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["bench"],
        *project["dependency-groups"]["test"],
        *project["dependency-groups"]["lint"],
    ]
    for requirement in map(Requirement, wanted):
        version = pinned[re.sub(r"[-_.]+", "-", requirement.name).lower()]
        assert requirement.specifier.contains(version), f"{requirement} is pinned to {version}"


def test_inside_tox_the_installed_package_is_tested_and_not_the_checkout():
    if "TOX_ENV_DIR" not in os.environ:
        pytest.skip("only tox installs the wheel")
    environment = Path(os.environ["TOX_ENV_DIR"]).resolve()
    for package in (sparsegate, sparsegate_gates):
        assert Path(package.__file__).resolve().is_relative_to(environment)
    assert importlib.metadata.version("sparsegate") == sparsegate.__version__
