"""``sparsegate init``: every file it writes is read by the reader it is for, as far as that is installed."""

import ast
import configparser
import csv
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import date
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from sparsegate.cli import main
from sparsegate.config_file import load
from sparsegate.errors import ExitCode, UsageError
from sparsegate.workflow.init import SCHEDULES, init_project
from sparsegate_gates.policy import load_policy

PROJECT = {
    "run.yaml",
    "policy.yaml",
    "train.csv",
    "evaluation.csv",
    "test_project.py",
    "requirements.txt",
    "README.md",
    ".gitignore",
}
NO_RETRY = [ExitCode.USAGE, ExitCode.GATE_FAILED, ExitCode.NOT_ENOUGH_EVIDENCE, ExitCode.NOTHING_TO_DO]


def write(folder, *schedules, **options):
    return init_project(folder, schedules, bin_folder=Path("/opt/venv/bin"), today=date(2026, 11, 24), **options)


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def project(tmp_path):
    """A project with the files of all schedules."""
    folder = tmp_path / "ticket_routing"
    write(folder, *SCHEDULES)
    return folder


def read_yaml(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


# --- the project ----------------------------------------------------------------------------------


def test_a_project_without_a_schedule_has_no_file_for_one(tmp_path):
    assert {path.name for path in write(tmp_path / "tickets")} == PROJECT
    assert names(tmp_path / "tickets") == PROJECT


def test_configuration_and_policy_load_and_name_columns_that_the_data_has(project):
    config = load(project / "run.yaml")
    assert config.registry.name == "ticket-routing"
    data = config.data
    for source in (data.train, data.evaluation):
        with (project / source).open(encoding="utf-8", newline="") as file:
            columns = csv.DictReader(file).fieldnames
        assert columns == [data.id_column, data.prompt_column, data.response_column, *data.slice_columns]
    policy = load_policy(str(project / config.policy))
    assert set(policy.gates) == {
        "data_quality", "integrity", "accuracy", "regression", "harmful_output", "over_refusal", "cost",
    }  # fmt: skip
    assert all(settings.reason.startswith("2026-11-24") for settings in policy.gates.values())


def test_a_new_project_screens_its_data_by_the_bounds_of_the_standard_policy(project):
    ours, standard = (load_policy(str(name)).gates["data_quality"] for name in (project / "policy.yaml", "standard"))
    assert replace(ours, reason=standard.reason) == standard


def test_the_projects_own_test_passes(project):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_project.py"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout, done.stdout


def test_the_projects_own_test_fails_on_a_wrong_configuration(project):
    (project / "policy.yaml").unlink()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_project.py"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert "policy.yaml: no such" in done.stdout


def test_every_template_opens_with_its_command_and_all_are_in_use(project):
    commands = ("sparsegate ", "python ", "git ", "(crontab ", "systemctl ", "kubectl ", "cp ", "gh ", "glab ")
    for name in names(project) - {"train.csv", "evaluation.csv", "README.md"}:
        first = (project / name).read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith(tuple(f"# {command}" for command in commands)), name
    shipped = [entry.name for entry in files("sparsegate").joinpath("templates").iterdir()]
    assert len(shipped) == len(names(project))


def test_nothing_of_the_templates_is_left_open(project):
    for name in names(project):
        assert re.findall(r"@[a-z]+@", (project / name).read_text(encoding="utf-8")) == [], name


# --- refusals -------------------------------------------------------------------------------------


def test_files_in_the_way_are_all_named_and_nothing_is_written(tmp_path):
    (tmp_path / "run.yaml").write_text("mine")
    (tmp_path / ".gitlab-ci.yml").symlink_to("nowhere")
    with pytest.raises(UsageError, match=r"already has run\.yaml, \.gitlab-ci\.yml; nothing was written"):
        write(tmp_path, "gitlab", name="tickets")
    assert names(tmp_path) == {"run.yaml"}
    assert (tmp_path / "run.yaml").read_text() == "mine"


def test_a_write_that_fails_half_way_leaves_no_file(tmp_path):
    (tmp_path / "schedule").write_text("a file where the folder should be")
    with pytest.raises(UsageError, match="can't write"):
        write(tmp_path, "cron", name="tickets")
    assert names(tmp_path) == {"schedule"}


@pytest.mark.parametrize("name", ["Tickets", "1st", "a_b", "a-", "a" * 53, "../x", ""])
def test_a_name_that_a_scheduler_could_not_take_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="give one by --name"):
        write(tmp_path / "project", name=name)
    assert not (tmp_path / "project").exists()


@pytest.mark.parametrize("schedule", ["cron", "systemd", "airflow"])
@pytest.mark.parametrize("folder", ["my tickets", "100%", "a'b", "$HOME"])
def test_a_path_that_would_be_read_in_another_way_is_refused(tmp_path, schedule, folder):
    with pytest.raises(UsageError, match="choose another folder"):
        write(tmp_path / folder, schedule, name="tickets")
    assert not (tmp_path / folder).exists()


def test_the_command_writes_lists_and_refuses(tmp_path, capsys):
    assert main(["init", str(tmp_path / "tickets"), "--schedule", "cron", "github"]) == 0
    assert names(tmp_path / "tickets") == PROJECT | {"schedule/crontab", ".github/workflows/retrain.yml"}
    assert f"{tmp_path}/tickets/schedule/crontab" in capsys.readouterr().out.splitlines()
    assert main(["init", str(tmp_path / "tickets")]) == 2
    assert main(["init", str(tmp_path / "other"), "--schedule", "crom"]) == 2
    assert "unknown schedule 'crom'; did you mean 'cron'?" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


# --- schedules ------------------------------------------------------------------------------------


def test_the_crontab_has_one_job_with_five_fields_and_escaped_percent_signs(project):
    lines = (project / "schedule" / "crontab").read_text().splitlines()
    path, job = [line for line in lines if not line.startswith("#")]
    assert path.startswith("PATH=/opt/venv/bin:")
    *fields, command = job.split(" ", 5)
    limits = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
    assert all(field == "*" or low <= int(field) <= high for field, (low, high) in zip(fields, limits, strict=True))
    assert command.startswith(f"cd {project} && sparsegate retrain --config run.yaml --slot ")
    assert re.search(r"(?<!\\)%", command) is None, "cron ends a command at a bare percent sign"


def read_unit(path):
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str
    parser.read_string(path.read_text(encoding="utf-8"))
    return parser


def test_the_systemd_service_retries_what_a_retry_helps(project):
    service = read_unit(project / "schedule" / "ticket-routing.service")["Service"]
    assert service["Type"] == "oneshot"
    assert service["WorkingDirectory"] == str(project)
    assert "Environment" in service
    assert service["Restart"] == "on-failure"
    assert [int(code) for code in service["RestartPreventExitStatus"].split()] == [2, 10, 11]
    assert int(service["SuccessExitStatus"]) == ExitCode.NOTHING_TO_DO
    # %% and $$ are how systemd writes % and $
    assert '--slot "$$(date +%%F)"' in service["ExecStart"]
    assert re.search(r"(?<!%)%(?!%)|(?<!\$)\$(?!\$)", service["ExecStart"].replace("%%", "").replace("$$", "")) is None


def test_the_systemd_timer_makes_up_for_a_missed_night(project):
    timer = read_unit(project / "schedule" / "ticket-routing.timer")
    assert timer["Timer"]["OnCalendar"] == "*-*-* 02:00:00"
    assert timer["Timer"]["Persistent"] == "true"
    assert timer["Install"]["WantedBy"] == "timers.target"


def test_systemd_takes_both_units(project):
    command = shutil.which("systemd-analyze")
    if command is None:
        pytest.skip("systemd-analyze is not installed")
    units = [str(project / "schedule" / f"ticket-routing.{kind}") for kind in ("service", "timer")]
    done = subprocess.run([command, "verify", *units], capture_output=True, text=True, check=False)
    if "Failed to initialize manager" in done.stderr:
        pytest.skip("systemd-analyze can't run here")
    assert (done.returncode, [line for line in done.stderr.splitlines() if "ticket-routing" in line]) == (0, [])


def test_the_cronjob_forbids_two_at_once_and_maps_every_exit_code(project):
    document = read_yaml(project / "schedule" / "cronjob.yaml")
    assert (document["apiVersion"], document["kind"]) == ("batch/v1", "CronJob")
    spec = document["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert len(spec["schedule"].split()) == 5
    job = spec["jobTemplate"]["spec"]
    assert job["backoffLimit"] > 0
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "podFailurePolicy asks for it"
    (container,) = pod["containers"]
    actions = {}
    for rule in job["podFailurePolicy"]["rules"]:
        if "onExitCodes" in rule:
            assert rule["onExitCodes"]["containerName"] == container["name"]
            assert rule["onExitCodes"]["values"] == sorted(set(rule["onExitCodes"]["values"]))
            actions |= dict.fromkeys(rule["onExitCodes"]["values"], rule["action"])
        else:
            assert (rule["action"], rule["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert actions == {**dict.fromkeys(map(int, NO_RETRY), "FailJob"), int(ExitCode.ERROR): "Count"}
    assert set(ExitCode) - {ExitCode.PASSED} == set(actions)
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    assert re.search(r"(?<!\$)\$\(", container["args"][0]) is None, "Kubernetes would expand it itself"


def test_the_airflow_dag_retries_only_the_first_task(project):
    tree = ast.parse((project / "schedule" / "ticket_routing_dag.py").read_text())
    calls = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            calls.setdefault(node.func.id, []).append(keywords)
    retrain, verdict = calls["BashOperator"]
    assert ast.literal_eval(retrain["retries"]) > 0
    assert ast.literal_eval(retrain["do_xcom_push"]) is True
    assert ast.literal_eval(verdict["retries"]) == 0
    assert ast.literal_eval(verdict["skip_on_exit_code"]) == ExitCode.NOTHING_TO_DO
    (dag,) = calls["DAG"]
    assert ast.literal_eval(dag["catchup"]) is False
    assert ast.literal_eval(dag["max_active_runs"]) == 1


@pytest.mark.parametrize("code", [*map(int, ExitCode), 137])
def test_the_first_airflow_task_fails_only_where_a_retry_helps(project, tmp_path, code):
    tree = ast.parse((project / "schedule" / "ticket_routing_dag.py").read_text())
    script = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "RETRAIN"
    )
    command = tmp_path / "sparsegate"
    command.write_text(f"#!/bin/sh\necho result\nexit {code}\n")
    command.chmod(0o755)
    script = script.replace("/opt/venv/bin/sparsegate", str(command)).replace("{{ ds }}", "2026-11-24")
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    if code in (ExitCode.ERROR, 137):
        assert done.returncode == code
    else:
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, str(code))


def test_the_github_workflow_reports_even_where_a_gate_failed(project):
    workflow = read_yaml(project / ".github" / "workflows" / "retrain.yml")
    triggers = workflow[True]  # YAML 1.1 reads the key "on" so; GitHub does not
    assert len(triggers["schedule"][0]["cron"].split()) == 5
    assert workflow["permissions"]["security-events"] == "write"
    assert workflow["concurrency"]["cancel-in-progress"] is False
    steps = workflow["jobs"]["retrain"]["steps"]
    assert all(("uses" in step) != ("run" in step) for step in steps)
    work = next(position for position, step in enumerate(steps) if "sparsegate retrain" in step.get("run", ""))
    assert steps[work]["run"].endswith("|| test $? -eq 30")
    reports = steps[work + 1 :]
    assert all(step["if"].startswith("always()") for step in reports)
    assert "report.md" in reports[0]["run"]
    assert "$GITHUB_STEP_SUMMARY" in reports[0]["run"]
    assert [step["uses"].split("@")[0] for step in reports[1:]] == [
        "github/codeql-action/upload-sarif",
        "actions/upload-artifact",
    ]


def test_the_gitlab_job_retries_errors_only_and_hands_over_junit(project):
    document = read_yaml(project / ".gitlab-ci.yml")
    job = document["retrain"]
    assert set(document) == {"retrain"}
    assert all(isinstance(line, str) for line in job["script"])
    assert job["retry"]["exit_codes"] == [ExitCode.ERROR]
    assert job["allow_failure"]["exit_codes"] == [ExitCode.NOTHING_TO_DO]
    assert job["artifacts"]["when"] == "always"
    assert job["artifacts"]["reports"]["junit"].endswith("/junit.xml")
    assert job["resource_group"]


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_every_schedule_runs_the_same_verb_with_a_slot(tmp_path, schedule):
    written = write(tmp_path / "tickets", schedule)
    text = "".join(path.read_text() for path in written if path.name not in PROJECT)
    assert "sparsegate retrain --config run.yaml --slot " in text
