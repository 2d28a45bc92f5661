"""The command line: one plain function for each verb. Result on stdout, progress and logs on stderr."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsegate import __version__
from sparsegate.bench_command import bench
from sparsegate.config_options import parse_config
from sparsegate.errors import ExitCode, SparsegateError, UsageError, did_you_mean, is_full
from sparsegate.export_command import export
from sparsegate.inspect_command import inspect
from sparsegate.logs import quiet_logs
from sparsegate.options import PlainParser
from sparsegate.pilot_command import pilot
from sparsegate.runs_options import parse_runs_options
from sparsegate.version_options import parse_version_options, registry_of

if TYPE_CHECKING:
    from sparsegate.workflow.outcome import Outcome

_FIRST = "the model has no version yet, and that is right: the candidate is held against the base model"
_HELP = f"""sparsegate {__version__}: retrain a language model sparsely, gate it, register it in MLflow

usage: sparsegate VERB [--help]

  retrain   validate, train, evaluate, gate, register and promote; with --dry_run, say what would be done
  train     validate the data and train; with --find_lr, suggest a learning rate
  gate      judge a run's candidate, or (--config FILE --candidate WHERE) a model trained elsewhere
  register  register and promote a candidate that has passed
  verify    check a registered version from the registry's bytes
  promote   make a registered version the champion
  rollback  make an earlier version the champion again
  history   list the versions of a registered model
  status    say whether its runs start and end as they should, for an alarm
  prune     remove old runs that no version came from
  validate  check configuration, policy and data, and whether each gate can pass; nothing is run or written, unless
            --draft-suite FILE asks for a suite of expectations drafted from the data
  waive     let a gate that failed pass once, by a signature
  init      write a new project, and on request the files of its schedule
  inspect   where the mask of a delta lies, its largest changes, and what it shares with another delta
  export    a delta, or several in one, as merged weights, as an adapter of PEFT or as a delta file
  bench     time and memory of a training step, beside full fine-tuning and PEFT's methods;
            with --quality, their accuracy, time to it, and forgetting
  pilot     what full fine-tuning, LoRA and sparse training keep, save and risk on your data: go or no-go

exit codes: 0 passed, 2 usage or configuration, 10 a gate failed, 11 not enough evidence, 20 error (worth a retry),
            30 nothing to do, or another run holds the lock
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in {"-h", "--help"}:
        print(_HELP, end="")
        return ExitCode.PASSED
    if given[0] == "--version":
        print(__version__)
        return ExitCode.PASSED
    verb = VERBS.get(given[0])
    try:
        if verb is None:
            raise UsageError(f"unknown verb '{given[0]}'{did_you_mean(given[0], VERBS)}")
        return verb(given[1:])
    except SparsegateError as error:
        print(f"sparsegate: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(
            "sparsegate: interrupted; a run goes on from its last whole stage when the same command is given again",
            file=sys.stderr,
        )
        return ExitCode.ERROR
    except Exception as error:
        if isinstance(error, OSError) and is_full(error):
            print(f"sparsegate: {error.strerror}; free some space and give the same command again", file=sys.stderr)
            return ExitCode.ERROR
        traceback.print_exc()
        print("sparsegate: unexpected error, see above; nothing was registered half", file=sys.stderr)
        return ExitCode.ERROR


# --- verbs --------------------------------------------------------------------------------------


def retrain(arguments: Sequence[str]) -> int:
    """Run ``sparsegate retrain``."""
    from sparsegate.workflow.notify import announced

    about = "say what would be done, and do nothing: nothing is fetched, written or locked"
    config, options = parse_config("retrain", arguments, flags={"dry_run": about, "first": _FIRST})
    if options.dry_run:
        quiet_logs()
        from sparsegate.workflow.dry_run import plan

        return _print(plan(config, first=options.first), options)
    first = options.first
    return _run(options, lambda workflow: announced(config.notify, lambda: workflow.retrain(config, first=first)))


def train(arguments: Sequence[str]) -> int:
    """Run ``sparsegate train``."""
    about = (
        "suggest a learning rate and stop: a range test trains for 100 steps at rising rates and puts every weight"
        " back. Nothing is trained or registered; to train with what it suggests, give --training.learning_rate"
    )
    config, options = parse_config("train", arguments, flags={"find_lr": about})
    return _run(options, lambda workflow: (workflow.find_learning_rate if options.find_lr else workflow.train)(config))


def gate(arguments: Sequence[str]) -> int:
    """Run ``sparsegate gate``."""
    if any(argument.startswith(("--candidate", "--config")) for argument in arguments):
        about = "a model's folder, an adapter's folder, models:/NAME/3, models:/NAME@ALIAS or runs:/ID/model"
        config, options = parse_config("gate", arguments, files={"candidate": about})
        if options.candidate is None:
            raise UsageError("--config needs --candidate: the model to judge by that configuration")
        where = str(options.candidate)
        return _run(options, lambda workflow: workflow.gate_candidate(config, where), module="gate")
    parser = _run_parser(
        "gate", "Judge the candidate of a run; or, with --config FILE --candidate WHERE, a model trained elsewhere."
    )
    parser.add_argument("--policy", help="policy to judge by (default: the run's own)")
    options = parser.parse_args(arguments)
    return _run(options, lambda workflow: workflow.gate(options.run, policy=options.policy), module="gate")


def register(arguments: Sequence[str]) -> int:
    """Run ``sparsegate register``."""
    parser = _run_parser("register", "Register and promote the candidate of a run that has passed.")
    parser.add_argument("--first", action="store_true", help=_FIRST)
    options = parser.parse_args(arguments)
    return _run(options, lambda workflow: workflow.register(options.run, first=options.first))


def verify(arguments: Sequence[str]) -> int:
    """Run ``sparsegate verify``."""
    options = parse_version_options("verify", arguments)
    from sparsegate.workflow import versions

    uri, public_key = options.tracking_uri, options.public_key
    return _show(options, lambda: versions.verify(options.target, tracking_uri=uri, public_key=public_key))


def promote(arguments: Sequence[str]) -> int:
    """Run ``sparsegate promote``."""
    options = parse_version_options("promote", arguments)
    from sparsegate.workflow import versions

    registry = registry_of(options)
    return _show(
        options, lambda: versions.promote(registry, options.number, reason=options.reason, runs=options.output_dir)
    )


def rollback(arguments: Sequence[str]) -> int:
    """Run ``sparsegate rollback``."""
    options = parse_version_options("rollback", arguments)
    from sparsegate.workflow import versions

    registry = registry_of(options)
    return _show(
        options,
        lambda: versions.rollback(
            registry, to=options.number, reason=options.reason, bad=options.quarantine, runs=options.output_dir
        ),
    )


def history(arguments: Sequence[str]) -> int:
    """Run ``sparsegate history``."""
    options = parse_version_options("history", arguments)
    from sparsegate.workflow.history import history as read_history

    return _show(options, lambda: read_history(options.tracking_uri, options.name))


def status(arguments: Sequence[str]) -> int:
    """Run ``sparsegate status``."""
    options = parse_runs_options("status", arguments)
    from sparsegate.workflow.heartbeat import status as read_status

    rest = {"max_age": options.max_age, "tracking_uri": options.tracking_uri}
    return _print(read_status(options.output_dir, options.name, **rest), options)


def prune(arguments: Sequence[str]) -> int:
    """Run ``sparsegate prune``."""
    options = parse_runs_options("prune", arguments)
    from sparsegate.workflow.prune import prune as remove

    rest = {name: getattr(options, name) for name in ("tracking_uri", "keep", "cache_dir", "dry_run")}
    return _show(options, lambda: remove(options.output_dir, options.name, **rest))


def validate(arguments: Sequence[str]) -> int:
    """Run ``sparsegate validate``."""
    about = "also write a Great Expectations suite drafted from the data, for the policy's data_quality.suite"
    config, options = parse_config("validate", arguments, files={"draft-suite": about})
    quiet_logs()
    from rich.console import Console

    from sparsegate.workflow.readiness import needs_of, needs_table, needs_to_json, shortages
    from sparsegate.workflow.retrain import check

    policy, inputs = check(config)
    if options.draft_suite:
        from sparsegate.workflow.draft import write_draft_suite

        write_draft_suite(options.draft_suite, inputs, task=config.data.task)
    figures: dict[str, Any] = {
        "policy": policy.name,
        "gates": list(policy.gates),
        "train": len(inputs.train),
        "validation": len(inputs.validation),
        "evaluation": len(inputs.evaluation),
        "labels": list(inputs.labels),
        "red_team": len(inputs.red_team),
        "benign": len(inputs.benign),
    }
    needs = needs_of(policy, inputs)
    short = shortages(needs)
    if options.json:
        drafted = {"draft_suite": str(options.draft_suite)} if options.draft_suite else {}
        shown = {**figures, "needs": needs_to_json(needs), "shortages": short, **drafted}
        print(json.dumps(shown, ensure_ascii=False))
    else:
        for name, value in figures.items():
            print(f"{name:<11}{', '.join(value) if isinstance(value, list) else value}")
        console = Console()
        (console if console.is_terminal else Console(width=140)).print("", needs_table(needs), "", sep="\n")
        for line in short:
            print(f"can't pass: {line}")
        if options.draft_suite:
            print(f"drafted {options.draft_suite}: read it, then name it in the policy as data_quality.suite")
        done = "nothing was run" if options.draft_suite else "nothing was run or written"
        print(f"valid: {done}" if not short else "valid, but no model can pass these gates")
    return ExitCode.NOT_ENOUGH_EVIDENCE if short else ExitCode.PASSED


def waive(arguments: Sequence[str]) -> int:
    """Run ``sparsegate waive``."""
    parser = _run_parser("waive", "Let a gate that did not pass be passed over once, signed by an approver.")
    parser.add_argument("--gate", required=True, help="the gate; never integrity, and never one that ended in ERROR")
    parser.add_argument("--approver", required=True, help="your name in the policy's approvers")
    parser.add_argument("--reason", required=True, help="why the failure is accepted")
    parser.add_argument("--expires", required=True, metavar="DATE", help="last day on which it holds (2026-12-31)")
    parser.add_argument("--key", required=True, type=Path, metavar="FILE", help="your Ed25519 private key, PEM")
    options = vars(parser.parse_args(arguments))
    quiet_logs()
    from sparsegate.workflow.waive import waive as give

    as_json = options.pop("json")
    message = give(options.pop("run"), **options)
    print(json.dumps({"message": message}, ensure_ascii=False) if as_json else message)
    return ExitCode.PASSED


def init(arguments: Sequence[str]) -> int:
    """Run ``sparsegate init``."""
    from datetime import UTC, datetime

    from sparsegate.workflow.init import SCHEDULES, init_project

    parser = PlainParser(
        prog="sparsegate init",
        description="Write a new project: configuration, policy, a few rows of data, a test, and files of schedules.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, help="folder of the project; made if it is missing")
    parser.add_argument(
        "--schedule", nargs="+", default=[], metavar="KIND", help=f"one or more of {', '.join(SCHEDULES)}"
    )
    parser.add_argument("--name", help="name of the model and of the jobs (default: the folder's name)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(arguments)
    written = init_project(
        options.folder,
        options.schedule,
        name=options.name,
        bin_folder=Path(sys.executable).parent,
        today=datetime.now(UTC).date(),
    )
    if options.json:
        print(json.dumps({"files": [str(path) for path in written]}, ensure_ascii=False))
    else:
        print("\n".join(str(path) for path in written))
        print(f"next: cd {options.folder} && sparsegate validate --config run.yaml")
    return ExitCode.PASSED


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "retrain": retrain,
    "train": train,
    "gate": gate,
    "register": register,
    "verify": verify,
    "promote": promote,
    "rollback": rollback,
    "history": history,
    "status": status,
    "prune": prune,
    "validate": validate,
    "waive": waive,
    "init": init,
    "inspect": inspect,
    "export": export,
    "bench": bench,
    "pilot": pilot,
}


# --- parts --------------------------------------------------------------------------------------


def _run(options: Any, work: Callable[[Any], Outcome], *, module: str = "retrain") -> int:
    """Run a part of the workflow and print its outcome."""
    quiet_logs()
    from rich.console import Console

    outcome = work(import_module(f"sparsegate.workflow.{module}"))
    if options.json:
        print(json.dumps(outcome.to_json(), ensure_ascii=False))
    else:
        console = Console()
        outcome.print(console if console.is_terminal else Console(width=120))
    return outcome.exit_code


def _show(options: Any, work: Callable[[], Any]) -> int:
    """Run a verb on registered versions and print what it found."""
    quiet_logs()
    from sparsegate.registry.reachability import check_tracking

    check_tracking(options.tracking_uri)
    return _print(work(), options)


def _print(result: Any, options: Any) -> int:
    print(json.dumps(result.to_json(), ensure_ascii=False) if options.json else result.render())
    return int(result.exit_code)


def _run_parser(verb: str, description: str) -> PlainParser:
    parser = PlainParser(prog=f"sparsegate {verb}", description=description, allow_abbrev=False)
    parser.add_argument("run", type=Path, help="folder of the run, such as runs/0123456789abcdef")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
