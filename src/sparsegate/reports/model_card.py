"""The model card of a version, as Markdown, made from its evidence and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from sparsegate.contracts import JSON
from sparsegate.reports.markdown import gate_rows
from sparsegate.reports.model import GateReport


def to_model_card(evidence: Mapping[str, JSON]) -> str:
    """Return the card: what the model is, how it was made and judged, and what is known of its limits.

    Args:
        evidence: The evidence of the version.
    """
    report, training, cost = GateReport.from_json(evidence["report"]), evidence["training"], evidence["cost"]
    plan = evidence["plan"]
    signing = evidence["signing"]
    signed = f"signed by key `{signing['key_id'][:16]}`" if signing["mode"] != "unsigned" else "**UNSIGNED**"
    lines = [
        f"# {evidence['name']}",
        "",
        f"A {evidence['task']} model: `{evidence['base']['source']}` with a sparse delta on top.",
        f"Made {evidence['created_at']} by {evidence['actor']} with sparsegate {evidence['code_version']},"
        f" run `{evidence['run_key'][:16]}`, attempt {evidence['attempt']} on this evaluation set.",
        *(f"Started by {trigger}." for trigger in evidence.get("triggers", ())),
        f"The evidence beside this card is {signed}; `sparsegate verify` checks it.",
        "",
        "## Results",
        "",
        *_figures(evidence["models"]),
        "",
        f"Policy `{report.policy_name}` (`{report.policy_sha256[:12]}`): **{report.verdict}**",
        "",
        *gate_rows(report),
        "",
        "## Training",
        "",
        f"- {training['support']} support chosen by {training['selector']}, density {plan['density']:.3g},"
        f" layers from {plan['first_layer']} up, seed {training['seed']}",
        f"- {cost['trainable_parameters']:,} of {cost['total_parameters']:,} weights trained, {cost['steps']} steps,"
        f" {cost['train_seconds']:.0f} s on {cost['device']}, peak memory {cost['peak_memory_bytes'] / 1e9:.2f} GB",
        "",
        "## Digests (sha256)",
        "",
        *(f"- {name}: `{digest}`" for name, digest in _digests(evidence).items()),
        "",
        "## Limits",
        "",
        "The gates speak for the evaluation set, the prompts and the judges named by digest above, for nothing else.",
    ]
    return "\n".join(lines) + "\n"


def to_description(evidence: Mapping[str, JSON]) -> str:
    """Return what a registry shows with the version: one line of results, and the card without title and digests.

    Args:
        evidence: The evidence of the version.
    """
    report, models = GateReport.from_json(evidence["report"]), evidence["models"]
    # lists of versions show the first words only
    others = ", ".join(f"{role} {_in_short(figures)}" for role, figures in models.items() if role != "candidate")
    card = to_model_card(evidence)
    body = card[card.index("\n\n") : card.index("\n## Digests")]
    ours = _in_short(models["candidate"])
    return f"accuracy {ours} ({others}), {report.verdict} by policy {report.policy_name}{body}"


def _in_short(figures: Mapping[str, float]) -> str:
    perplexity = figures.get("perplexity")  # of a generation task
    return f"{figures['accuracy']:.3f}" + ("" if perplexity is None else f" and perplexity {perplexity:.3g}")


def _figures(models: Mapping[str, Mapping[str, float]]) -> list[str]:
    names = list(dict.fromkeys(name for figures in models.values() for name in figures))
    lines = [
        "| model | " + " | ".join(name.replace("_", " ") for name in names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for role, figures in models.items():
        cells = [f"{figures[name]:.3f}" if name in figures else "-" for name in names]
        lines.append("| " + " | ".join([role, *cells]) + " |")
    return lines


def _digests(evidence: Mapping[str, JSON]) -> dict[str, str]:
    digests = {f"data, {name}": digest for name, digest in evidence["data_sha256"].items()}
    digests |= {f"judge of {gate}": judge["sha256"] for gate, judge in evidence["judges"].items()}
    digests |= {"base": evidence["base"]["digest"], "configuration": evidence["config_sha256"]}
    return digests | {"delta": evidence["delta_sha256"], "mask": evidence["mask_sha256"]}
