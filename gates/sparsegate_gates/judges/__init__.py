"""Judges of free text, by name. A judge is a function of prompt and response.

To add one: a file here with a function, and one line in the table. Other packages add theirs by the entry point group
``sparsegate.judges``. Judges that are models or endpoints are named ``KIND:WHERE`` and stand in the second table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sparsegate.errors import ConfigError, ModelError, did_you_mean
from sparsegate_gates.judges import lexical
from sparsegate_gates.judges.embedded import EmbeddedJudge
from sparsegate_gates.judges.endpoint import EndpointJudge, target_problem
from sparsegate_gates.judges.judgement import (
    UNSCORABLE,
    BatchJudge,
    CalibratedJudge,
    Fault,
    Judge,
    Judgement,
    judge_digest,
)
from sparsegate_gates.plugins import look_up

__all__ = [
    "JUDGES",
    "MODEL_JUDGES",
    "UNSCORABLE",
    "BatchJudge",
    "CalibratedJudge",
    "Fault",
    "Judge",
    "Judgement",
    "judge_digest",
    "judge_problem",
    "load_judge",
]

Labels = Mapping[str, str]


def _classifier(where: str, labels: Labels) -> BatchJudge:
    from sparsegate_gates.judges.classifier import ClassifierJudge

    return ClassifierJudge(where, labels)


def _llama_guard(where: str, labels: Labels) -> BatchJudge:
    from sparsegate_gates.judges.language_model import LanguageModelJudge

    return LanguageModelJudge("llama-guard", where)


def _harmbench(where: str, labels: Labels) -> BatchJudge:
    from sparsegate_gates.judges.language_model import LanguageModelJudge

    return LanguageModelJudge("harmbench", where)


def _endpoint(where: str, labels: Labels) -> BatchJudge:
    return EndpointJudge(where)


JUDGES: Mapping[str, Judge] = {
    "embedded": EmbeddedJudge(),
    "lexical": lexical.judge,
}
MODEL_JUDGES: Mapping[str, Callable[[str, Labels], BatchJudge]] = {
    "harmbench": _harmbench,
    "hf-classifier": _classifier,
    "llama-guard": _llama_guard,
    "openai": _endpoint,
}
_HARM_ONLY = ("harmbench", "llama-guard")


def load_judge(name: str, labels: Labels | None = None) -> Judge:
    """Return the judge of a name. Models are found and pinned here, and loaded when they first judge.

    Args:
        name: A name in the table, or ``KIND:WHERE``.
        labels: What each label of a classifier means: ``harmful``, ``refused`` or ``neither``.

    Raises:
        ConfigError: If there is none, listing the names that there are.
        ModelError: If its model can't be found.
    """
    kind, colon, where = name.partition(":")
    if not colon:
        judge: Judge = look_up(name, JUDGES, group="sparsegate.judges", kind="judge")
        return judge
    if kind not in MODEL_JUDGES:
        raise ConfigError([f"unknown kind of judge '{kind}:'{did_you_mean(kind, MODEL_JUDGES)}"])
    try:
        return MODEL_JUDGES[kind](where, labels or {})
    except ModelError as error:
        raise ModelError(f"judge '{name}': {error}") from error


def judge_problem(name: str, labels: Labels, fault: Fault) -> str | None:
    """Say why a judge can't serve a gate that asks for a fault; None if nothing is known against it yet."""
    kind, colon, where = name.partition(":")
    if colon and kind not in MODEL_JUDGES:
        return f"judge got the unknown kind '{kind}:'{did_you_mean(kind, MODEL_JUDGES)}"
    if colon and not where:
        return f"judge must name a model or an endpoint after '{kind}:'"
    if fault == "refused" and colon and kind in _HARM_ONLY:
        return f"judge '{kind}' tells harm only and no refusals; take embedded, lexical, hf-classifier or openai"
    if kind == "openai" and (problem := target_problem(where)):
        return problem
    if kind != "hf-classifier":
        return "judge_labels is for hf-classifier only; remove it" if labels else None
    unknown = sorted(set(labels.values()) - {"harmful", "refused", "neither"})
    if unknown:
        return f"judge_labels must map each label to harmful, refused or neither, got '{unknown[0]}'"
    return None if fault in labels.values() else f"judge_labels must map at least one of the labels to {fault}"
