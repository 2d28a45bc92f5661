"""Experiments on the field's claims that no configuration can express; claims.yaml holds what they share.

python tests/benchmarks/quality_data.py ../shared/data runs/quality_data
python tests/benchmarks/pilot_data.py ../shared/data runs/pilot_data
python tests/benchmarks/claims.py masks lowrank compose

masks    what is trained stays, or changes during training, with new entries' moments seeded or zero
lowrank  a LoRA on the same maps beside the trained entries (RoSA, arXiv:2401.04679), both at one rate
compose  two tasks trained apart; the sum of both changes on either task, for ours and for PEFT LoRAs

Each run is a line of claims.yaml's ``output``; give the same command again after an interruption, and it goes on.
Deltas and LoRAs stay beside that file. All runs share one process, so that their peak memory says nothing.
"""

import sys
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import nn

from sparsegate.config_file import load
from sparsegate.errors import SparsegateError
from sparsegate.models import load as load_model
from sparsegate.models import resolve
from sparsegate.sparse.compose import combine, overlap
from sparsegate.sparse.delta import apply_delta, read_delta
from sparsegate.sparse.layers import sparse_layers
from sparsegate.workflow.bench.methods import METHODS, Method
from sparsegate.workflow.bench.quality.config import QualityConfig, QualityData
from sparsegate.workflow.bench.quality.job import Outcome, Point
from sparsegate.workflow.bench.quality.judge import Judge
from sparsegate.workflow.bench.quality.records import Results
from sparsegate.workflow.bench.quality.run import run_quality
from sparsegate.workflow.bench.quality.runner import Runner, judged_set
from sparsegate.workflow.bench.quality.samples import split
from sparsegate.workflow.bench.quality.train import run_job

ELEMENTS = "element:density=0.05:cut=0.667:cached"
RATE = 1.2e-3  # as in claims.yaml
CLINC150 = QualityData(
    train="runs/pilot_data/clinc150_train.jsonl",
    evaluation="runs/pilot_data/clinc150_evaluation.jsonl",
    prompt_column="text",
    response_column="department",
    train_sizes=(100,),
    evaluation_size=300,
    max_tokens=128,
)


# --- methods ------------------------------------------------------------------------------------


def zero_moments(setup):
    """Ours, but Adam's moments of new entries stay zero after a refresh."""
    prepared = METHODS["sparse"].build(setup)

    def refresh(step):
        with mock.patch("sparsegate.training.refresh.seed_moments"):
            prepared.refresh(step)

    return replace(prepared, refresh=refresh)


def low_rank(setup):
    """Ours with a LoRA on the same maps; the setting is ``rank=R:`` and then as of ``sparse``."""
    rank, _, setting = setup.setting.partition(":")
    prepared = METHODS["sparse"].build(replace(setup, setting=setting))
    torch.manual_seed(setup.seed)
    for layer in sparse_layers(setup.model).values():
        rows, columns = layer.weight.shape
        down = nn.Parameter(torch.empty(int(rank.removeprefix("rank=")), columns))
        nn.init.kaiming_uniform_(down, a=5**0.5)  # as PEFT does
        up = nn.Parameter(torch.zeros(rows, len(down)))
        layer.register_forward_hook(partial(_add_low_rank, down, up))
        prepared.optimizer.add_param_group({"params": [down, up]})
    return prepared


def _add_low_rank(down, up, _, inputs, output):
    return output + 2 * (inputs[0] @ down.T) @ up.T  # alpha is twice the rank, as in the benchmark's LoRAs


# --- experiments --------------------------------------------------------------------------------


def run_masks(config):
    """Static masks, and masks refreshed twice, for the last time twelve steps before the end."""
    arms = (f"sparse:{ELEMENTS}", f"sparse:{ELEMENTS}:refresh=14", f"zero:{ELEMENTS}:refresh=14")
    _run(config, dict.fromkeys(arms, (RATE,)))


def run_low_rank(config):
    """Entries alone, then fewer entries with a LoRA: as many trained values in all."""
    arms = (f"sparse:{ELEMENTS}", "lowrank:rank=4:" + ELEMENTS.replace("0.05", "0.0385"))
    _run(config, dict.fromkeys(arms, (RATE,)))


def _run(config, arms):
    methods = tuple(arms)
    config = replace(config, methods=methods, learning_rates=arms, reference=methods[0])
    for setting in run_quality(config, ask_one=train):
        for record in setting.finals:
            _say(record)


def run_compose(config):
    """Train two tasks apart, and judge the sum of both changes on either."""
    config = replace(config, data={**config.data, "clinc150": CLINC150}, general_text=None)
    splits = {name: split(name, data) for name, data in config.data.items()}
    results = Results(Path(config.output))
    folder = Path(config.output).with_suffix("")
    arms = {"sparse:column:density=0.2:cut=0.334:cached": 6.4e-4, "lora-ours": 1e-3}
    for seed, (method, rate) in product(config.seeds, arms.items()):
        changes = {name: folder / f"{name}-{method.replace(':', '-')}-{seed}" for name in splits}
        for summed, name in product((False, True), splits):
            data, parts = config.data[name], splits[name]
            ask = partial(judge_sum, tuple(changes.values())) if summed else partial(train_and_keep, changes[name])
            runner = Runner(config, resolve(config.model), results, ask)
            judged = judged_set(data.task, parts.evaluation, parts.labels, data.system_prompt, data.max_tokens)
            arm = f"sum of {' and '.join(splits)}:{method}" if summed else method
            _say(runner.run("final", name, 100, runner.training_job(arm, rate, seed, 100, parts, judged)))
        if method.startswith("sparse"):
            found = overlap([read_delta(path / "delta.safetensors") for path in changes.values()])[0]
            sys.stdout.write(f"seed {seed}: {found}\n")


def train(job):
    """Run a job in this process, where the methods above are known."""
    try:
        return run_job(job)
    except SparsegateError as error:
        return str(error)


def train_and_keep(folder, job):
    """Run a job and write what the user would keep."""
    method, kept = METHODS[job.method.partition(":")[0]], []

    def build(setup):
        kept.append(method.build(setup))
        return kept[0]

    with mock.patch.dict(METHODS, {job.method.partition(":")[0]: method._replace(build=build)}):
        outcome = run_job(job)
    folder.mkdir(parents=True, exist_ok=True)
    kept[0].write(folder)
    return outcome


def judge_sum(folders, job):
    """Judge the base model with the sum of several changes; nothing is trained."""
    torch.set_num_threads(job.threads)
    model, tokenizer = load_model(Path(job.model))
    if job.method.endswith("lora-ours"):
        for folder in folders:
            _merge_lora(model, load_file(folder / "adapter_model.safetensors"))
    else:
        apply_delta(model, combine([read_delta(folder / "delta.safetensors") for folder in folders], conflict="sum"))
    found = Judge(tokenizer, job.judged, batch_size=job.judge_batch_size).judge(model)
    end = Point(job.steps, 0.0, 0, found.quality, found.nll_nats)
    return Outcome((end,), None, None, 0.0, 0, 0, "")


@torch.no_grad()
def _merge_lora(model, tensors):
    for name in tensors:
        if ".lora_A." in name:
            up = tensors[name.replace(".lora_A.", ".lora_B.")]
            weight = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
            model.get_parameter(weight).add_(up @ tensors[name], alpha=2)


def _say(record):
    outcome = record.found
    said = record.error if outcome is None else f"{outcome.end.quality:.3f}, perplexity {outcome.general_perplexity}"
    sys.stdout.write(f"{record}: {said}\n")


EXPERIMENTS = {"masks": run_masks, "lowrank": run_low_rank, "compose": run_compose}

if __name__ == "__main__":
    METHODS["zero"] = Method("ours, moments of new entries zero", False, zero_moments)
    METHODS["lowrank"] = Method("ours and a LoRA: lowrank:rank=R:SUPPORT...", False, low_rank)
    shared = load(Path(__file__).with_suffix(".yaml"), QualityConfig)
    for experiment in sys.argv[1:]:
        EXPERIMENTS[experiment](shared)
