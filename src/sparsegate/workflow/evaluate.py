"""The evaluate stage: what candidate, champion and base say to the evaluation set and the safety prompts.

One model is in memory: the base is loaded from disk, and deltas are applied and taken back. The candidate is thus
judged as it will be deployed, base plus delta file, and not as training left it. Answers are cached by the digests of
model, prompts and settings, so base and champion are evaluated once.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsegate.config import RunConfig
from sparsegate.contracts import (
    JSON,
    EncodedSample,
    Generation,
    Prediction,
    Sample,
    Task,
    TextScore,
    canonical_json,
)
from sparsegate.data import ChatTemplate, PromptRow
from sparsegate.errors import DataError
from sparsegate.evaluation.generation import generate, response_nll
from sparsegate.files import read_json, read_records, sha256_bytes, write_json, write_records
from sparsegate.models import BaseModel, cache_folder, load, load_tokenizer
from sparsegate.registry.answering import make_predictor
from sparsegate.registry.promotion import Champion
from sparsegate.workflow.anchor import find_anchor
from sparsegate.workflow.candidate import (
    Subject,
    candidate_of,
    changed,
    config_spec,
    is_adapter,
    package_subject,
    stored_cost,
)
from sparsegate.workflow.inputs import ATTACK_SEED
from sparsegate.workflow.run import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_GENERAL_TOKENS = 1024
_LOG = logging.getLogger(__name__)


def generation_settings(config: RunConfig) -> dict[str, JSON]:
    """Return how free text is written, for the record of the gates that judge it."""
    safety = config.safety
    return {
        "sampling": "greedy",
        "max_new_tokens": safety.max_new_tokens,
        "batch_size": config.evaluation.batch_size,
        "device": config.evaluation.device,
        "attacks": list(safety.attacks),
        "attack_seed": ATTACK_SEED,
        "with_system_prompt": safety.with_system_prompt,
    }


def evaluate(run: Run, champion: Champion | None) -> list[Path]:
    """Evaluate candidate, base, champion and anchor; return the files written."""
    folder, registry = run.folder / "evaluate", run.config.registry
    subjects, files = _candidate_and_base(run), []
    stored = {"champion": champion, "anchor": find_anchor(registry, download_to=run.folder / "anchor")}
    for role, version in stored.items():
        if version is not None:
            subjects.append(package_subject(role, version.package, run.config, run.base))
    cost = None if champion is None else stored_cost(champion.package)
    if cost is not None:
        write_json(folder / "cost.champion.json", cost)
        files.append(folder / "cost.champion.json")
    # an adapter uses up the base that it is put on
    for key in dict.fromkeys((subject.base, is_adapter(subject)) for subject in subjects):
        files += _evaluate_on(run, key[0], [s for s in subjects if (s.base, is_adapter(s)) == key], folder)
    return files


def evaluate_answers(run: Run) -> list[Path]:
    """Evaluate on the evaluation set alone what was trained, and the base; return the files written.

    It is the first part of :func:`evaluate`, which then finds the answers in the cache.
    """
    return _evaluate_on(run, run.base, _candidate_and_base(run), run.folder / "evaluate", answers_only=True)


def _candidate_and_base(run: Run) -> list[Subject]:
    spec = config_spec(run.config, run.inputs.labels, run.base)
    return [candidate_of(run), Subject("base", run.base.digest, run.base, None, spec)]


def _cache_dir(run: Run) -> Path | None:
    return Path(run.config.model.cache_dir) if run.config.model.cache_dir else None


def _evaluate_on(
    run: Run, base: BaseModel, subjects: Sequence[Subject], folder: Path, *, answers_only: bool = False
) -> list[Path]:
    given = run.given is not None and run.given.kind == "merged" and run.given.subject.base == base
    model, tokenizer = load(base.folder, trust_remote_code=run.config.model.trust_remote_code and not given)
    files: list[Path] = []
    for subject in subjects:
        with changed(model, subject.change) as asked:
            if subject.role == "candidate" and run.given is not None:
                run.given.check_unchanged()
            if subject.role == "candidate":
                # on the CPU, where training left it
                files.append(_write_loaded(run, asked.cpu(), tokenizer, folder))
            evaluator = _Evaluator(run, asked.to(run.config.evaluation.device), tokenizer, subject, folder)
            files.append(evaluator.answers())
            files += [] if answers_only else evaluator.free_text()
    return files


def probe_digest(model: PreTrainedModel) -> str:
    """Return the digest of the logits that a model gives to a fixed token sequence: equal models, equal digest."""
    import torch

    vocabulary = model.config.get_text_config().vocab_size
    with torch.inference_mode():
        tokens = torch.arange(3, 3 + 32, device=model.device)[None] * 7919 % vocabulary
        logits = model(input_ids=tokens, use_cache=False).logits
    return sha256_bytes(logits.float().cpu().numpy().tobytes())


def _write_loaded(run: Run, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Record that the candidate was loaded from its files, and what shows that it is the one that was meant."""
    probe = probe_digest(model)
    if run.given is None:
        path = folder / "reload.json"
        trained = read_json(run.folder / "train" / "probe.json")["probe_sha256"]
        write_json(path, {"probe_sha256_in_memory": trained, "probe_sha256_reloaded": probe})
        return path
    path = folder / "loaded.json"
    ours = load_tokenizer(run.base.folder)
    same = {
        "vocabulary": tokenizer.get_vocab() == ours.get_vocab(),
        "chat template": tokenizer.chat_template == ours.chat_template,
    }
    write_json(path, {**run.given.to_json(), "probe_sha256": probe, "as the base's": same})
    return path


class _Evaluator:
    """Writes the predictions and generations of one subject, from the cache where it has them."""

    def __init__(
        self, run: Run, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, subject: Subject, folder: Path
    ) -> None:
        self._run, self._subject, self._folder = run, subject, folder
        self._model, self._tokenizer = model, tokenizer
        self._cache = cache_folder(_cache_dir(run)) / "evaluations"
        spec, evaluation = subject.spec, run.config.evaluation
        self._predictor = make_predictor(spec, model, tokenizer, batch_size=evaluation.batch_size)

    def answers(self) -> Path:
        role, inputs = self._subject.role, self._run.inputs
        return self._cached(f"predictions.{role}", Prediction, inputs.evaluation, self._predict)

    def free_text(self) -> list[Path]:
        role, inputs = self._subject.role, self._run.inputs
        files: list[Path] = []
        if self._subject.spec.task == "classification" and role == "candidate":
            # what a harmful request gets out of the deployed interface
            # behind the system prompt already: it has no second variant
            asked = [prompt for prompt in inputs.red_team if not prompt.system_prompt]
            requests = tuple(Sample(p.id, p.prompt, "", {"category": p.category}) for p in asked)
            files.append(self._cached(f"predictions.red_team.{role}", Prediction, requests, self._predict))
        for name, prompts in (("red_team", inputs.red_team), ("benign", inputs.benign)):
            files.append(self._cached(f"generations.{name}.{role}", Generation, prompts, self._generate))
        if inputs.general:
            files.append(self._cached(f"general.{role}", TextScore, inputs.general, self._score))
        return files

    def _cached(self, name: str, record: type[Any], items: Sequence[Any], make: Callable[..., list[Any]]) -> Path:
        """Return ``NAME.jsonl`` in the run's folder, made anew or taken from the cache."""
        spec, kind = self._subject.spec, name.split(".")[0]
        # the digest says which base and which delta; where the base was found changes no answer
        asked = [spec.task, spec.labels, spec.system_prompt, spec.max_tokens, spec.max_new_tokens]
        limit = self._run.config.safety.max_new_tokens if kind == "generations" else None
        settings = [kind, self._subject.digest, asked, limit, self._run.config.evaluation.device]
        content = [asdict(item) for item in items]
        key = sha256_bytes(canonical_json([self._run.manifest.code_version, settings, content]).encode())
        kept = self._cache / f"{key}.jsonl"
        path = self._folder / f"{name}.jsonl"
        if not kept.exists():
            with _progress(f"{name} ({len(items)})", len(items)) as step:
                write_records(kept, make(items, step))
        write_records(path, read_records(kept, record))
        return path

    def _predict(self, samples: Sequence[Sample], progress: Callable[[int], object]) -> list[Prediction]:
        answers = self._predictor.predict([sample.prompt for sample in samples], progress=progress)
        scored: list[tuple[float | None, int | None]] = [(None, None)] * len(samples)
        if self._subject.spec.task == "generation":
            spec = self._subject.spec
            template = ChatTemplate(self._tokenizer, system_prompt=spec.system_prompt, max_tokens=spec.max_tokens)
            rows = [template.encode(sample) for sample in samples]
            nlls = response_nll(self._model, rows)
            scored = [(nll, len(row.response_ids)) for nll, row in zip(nlls, rows, strict=True)]
        return [
            Prediction(
                id=sample.id,
                expected=sample.response,
                predicted=answer.response,
                correct=_is_correct(answer.response, sample.response, self._subject.spec.task),
                nll_nats=nll,
                slices=sample.slices,
                response_tokens=tokens,
            )
            for sample, answer, (nll, tokens) in zip(samples, answers, scored, strict=True)
        ]

    def _generate(self, prompts: Sequence[PromptRow], progress: Callable[[int], object]) -> list[Generation]:
        spec = self._subject.spec
        templates = {
            behind: ChatTemplate(
                self._tokenizer, system_prompt=spec.system_prompt if behind else None, max_tokens=spec.max_tokens
            )
            for behind in {prompt.system_prompt for prompt in prompts}
        }
        texts = generate(
            self._model,
            self._tokenizer,
            [templates[prompt.system_prompt].encode_prompt(prompt.prompt) for prompt in prompts],
            max_new_tokens=self._run.config.safety.max_new_tokens,
            batch_size=self._run.config.evaluation.batch_size,
            progress=progress,
        )
        return [
            Generation(prompt.id, prompt.category, prompt.prompt, text.text, text.finished)
            for prompt, text in zip(prompts, texts, strict=True)
        ]

    def _score(self, samples: Sequence[Sample], progress: Callable[[int], object]) -> list[TextScore]:
        """Score general texts as answers in free chat; what exceeds the model's context is cut off their ends."""
        longest = min(_GENERAL_TOKENS, getattr(self._model.config, "max_position_embeddings", _GENERAL_TOKENS))
        template = ChatTemplate(self._tokenizer, system_prompt=None, max_tokens=longest)
        encoded = []
        for sample in samples:
            prompt, text = template.encode_prompt(sample.prompt), template.encode_response(sample.response)
            if len(prompt) >= longest:
                raise DataError(f"evaluation.general_text: the prompt of '{sample.id}' has {len(prompt)} tokens")
            encoded.append(EncodedSample(sample.id, prompt, text[: longest - len(prompt)]))
        nlls = response_nll(self._model, encoded)
        progress(len(samples))
        return [
            TextScore(sample.id, sample.slices["kind"], nll * len(row.response_ids), len(row.response_ids))
            for sample, row, nll in zip(samples, encoded, nlls, strict=True)
        ]


def _is_correct(answer: str, expected: str, task: Task) -> bool:
    """Say whether an answer counts as right: a label exactly, free text whatever its case and white space."""
    if task == "classification":
        return answer == expected
    return " ".join(answer.split()).casefold() == " ".join(expected.split()).casefold()


@contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show a bar on stderr where that is a terminal; the log tells the start in any case."""
    from tqdm import tqdm

    _LOG.info("evaluating %s", name)
    with tqdm(total=total, desc=name, file=sys.stderr, disable=None, leave=False) as bar:
        yield bar.update
