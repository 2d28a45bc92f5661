"""Writes a new project: configuration, policy, data to replace, a test, and the files of its schedules."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.resources import files
from pathlib import Path

from sparsegate import __version__
from sparsegate.errors import UsageError, did_you_mean
from sparsegate.files import write_text

_PROJECT = {
    "run.yaml": "run.yaml",
    "policy.yaml": "policy.yaml",
    "train.csv": "train.csv",
    "evaluation.csv": "evaluation.csv",
    "test_project.py": "test_project.py",
    "requirements.txt": "requirements.txt",
    "README.md": "README.md",
    "gitignore": ".gitignore",
}
# schedule to template and the file it becomes
SCHEDULES: Mapping[str, Mapping[str, str]] = {
    "cron": {"crontab": "schedule/crontab"},
    "systemd": {"service": "schedule/@name@.service", "timer": "schedule/@name@.timer"},
    "kubernetes": {"cronjob.yaml": "schedule/cronjob.yaml"},
    "airflow": {"airflow_dag.py": "schedule/@module@_dag.py"},
    "github": {"github.yml": ".github/workflows/retrain.yml"},
    "gitlab": {"gitlab.yml": ".gitlab-ci.yml"},
}
_LONGEST_NAME = 52  # Kubernetes appends eleven characters to the name of a CronJob, and takes 63


def init_project(
    folder: Path, schedules: Sequence[str] = (), *, name: str | None = None, bin_folder: Path, today: date
) -> list[Path]:
    """Write a project and the files of its schedules; a file that is there is never overwritten.

    Args:
        folder: The project's folder; made if it is missing.
        schedules: Names from ``SCHEDULES``.
        name: Name of the registered model and of the jobs; None derives it from the folder's name.
        bin_folder: Folder of the ``sparsegate`` command, for schedulers that start without a PATH.
        today: Date for the reasons in the policy.

    Returns:
        The files written.

    Raises:
        UsageError: If a name can't be used, or a file is in the way; nothing was written.
    """
    folder = folder.absolute()
    unknown = [
        f"unknown schedule '{given}'{did_you_mean(given, SCHEDULES)}" for given in schedules if given not in SCHEDULES
    ]
    if unknown:
        raise UsageError("\n".join(unknown))
    name = _name(folder, name)
    values = {
        "name": name,
        "module": name.replace("-", "_"),
        "folder": str(folder),
        "bin": str(bin_folder),
        "version": __version__,
        "date": today.isoformat(),
        "start": f"{today.year}, {today.month}, {today.day}",
    }
    templates = dict(_PROJECT)
    for schedule in schedules:
        templates |= SCHEDULES[schedule]
    texts = {folder / _fill(target, values): _read(template, values) for template, target in templates.items()}
    _refuse_odd_paths(folder, bin_folder, schedules)
    taken = [str(path.relative_to(folder)) for path in texts if path.exists() or path.is_symlink()]
    if taken:
        raise UsageError(f"{folder} already has {', '.join(taken)}; nothing was written. Choose another folder")
    _write_all(texts)
    return list(texts)


def _name(folder: Path, name: str | None) -> str:
    found = re.sub(r"[^a-z0-9]+", "-", folder.name.lower()).strip("-") if name is None else name
    if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", found) or len(found) > _LONGEST_NAME:
        raise UsageError(
            "the name must be of lower-case letters, digits and '-', start with a letter, not end with '-', and have"
            f" at most {_LONGEST_NAME} characters, got '{found}'; give one by --name"
        )
    return found


def _refuse_odd_paths(folder: Path, bin_folder: Path, schedules: Sequence[str]) -> None:
    """Refuse paths that crontab, systemd and shell would each read in another way than they are meant."""
    for schedule in ("cron", "systemd", "airflow"):
        for path in (folder, bin_folder):
            if schedule in schedules and not re.fullmatch(r"[\w/.+@,-]+", str(path), re.ASCII):
                raise UsageError(
                    f"the path '{path}' can't stand in the files for {schedule}: it may have letters, digits and"
                    " '/._+@,-' only; choose another folder"
                )


def _read(template: str, values: Mapping[str, str]) -> str:
    path = files("sparsegate").joinpath("templates", f"{template}.template")
    return _fill(path.read_text(encoding="utf-8"), values)


def _fill(text: str, values: Mapping[str, str]) -> str:
    """Replace each ``@key@``; all in one pass, so that no value is read as a template."""
    return re.sub(rf"@({'|'.join(values)})@", lambda found: values[found[1]], text)


def _write_all(texts: Mapping[Path, str]) -> None:
    """Write all files, or none."""
    written: list[Path] = []
    try:
        for path, text in texts.items():
            write_text(path, text)
            written.append(path)
    except BaseException:
        for path in written:
            path.unlink()
        raise
