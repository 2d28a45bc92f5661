"""What the pilot's page says beside its measurements: what to do, larger models, assumptions, how it was made."""

from __future__ import annotations

from html import escape

from sparsegate.reports.pilot import PilotResult
from sparsegate.reports.pilot_arm import ArmResult
from sparsegate.reports.pilot_html import listed, section, table
from sparsegate.reports.pilot_words import Words
from sparsegate.reports.wording import number

_WORTHWHILE_GAIN = 0.01  # of accuracy, for twice the data


def next_steps(result: PilotResult, words: Words, subject: ArmResult | None) -> str:
    """Say what to do, by the verdict and by what was found of the arm that is shown."""
    steps = [words.say(f"next_{result.verdict.value}")]
    if result.quick:
        steps.append(words.say("next_full"))
    if result.nothing_learnt:
        steps.append(words.say("next_other_base"))
    if subject is not None:
        told = words.arm(subject.name)
        steps += [
            words.say("next_rate", arm=told, learning_rate=number(float(rate)))
            for reason in subject.conditions
            if reason.code == "rate_at_edge" and (rate := reason.figures.get("learning_rate")) is not None
        ]
        gain = subject.gain_per_doubling
        if gain is not None and not result.nothing_learnt:
            key = "next_data" if gain >= _WORTHWHILE_GAIN else "next_enough_data"
            steps.append(words.say(key, arm=told, gain=f"{100 * gain:+.1f}"))
    return section(words.say("next"), listed(map(escape, steps)))


def hardware(result: PilotResult, words: Words) -> str:
    """Show the smallest hardware for larger models, the memory model's error here, and costs by price list."""
    parts = []
    if result.projections:
        rows = [
            (
                f'{escape(fit.model)} <span class="small">{escape(words.parameters(fit.parameters))}</span>',
                escape(words.arm(fit.arm)),
                escape(words.size(fit.memory_bytes)),
                escape(fit.device or words.say("too_large")),
            )
            for fit in result.projections
        ]
        fit = result.projections[0]
        work = {"batch_size": fit.batch_size, "tokens": fit.tokens, "supervised": fit.supervised}
        parts.append(f'<p class="small">{escape(words.say("hardware_legend", **work))}</p>\n')
        parts.append(table([words.say(key) for key in ("model", "arm", "memory", "device")], rows))
    checked = [
        (arm, arm.predicted_memory_bytes, arm.last.peak_memory_bytes)
        for arm in result.arms
        if arm.predicted_memory_bytes is not None and arm.last is not None
    ]
    if checked:
        rows = [
            (escape(words.arm(arm.name)), words.size(ours), words.size(real), f"{ours / real - 1:+.1%}")
            for arm, ours, real in checked
        ]
        headers = [words.say(key) for key in ("arm", "predicted", "measured", "error")]
        parts.append(f"<h3>{escape(words.say('model_check'))}</h3>\n{table(headers, rows)}")
    return section(words.say("hardware"), "".join(parts)) + _costs(result, words)


def _costs(result: PilotResult, words: Words) -> str:
    rows = [
        (
            escape(words.arm(arm.name)),
            escape(cost.device),
            escape(words.seconds(cost.seconds)),
            escape(f"{number(cost.money)} {cost.currency}"),
            escape(f"{number(cost.money_per_year)} {cost.currency}"),
        )
        for arm in result.arms
        for cost in arm.costs
    ]
    headers = [words.say(key) for key in ("arm", "device", "time", "once", "yearly")]
    return section(words.say("costs"), table(headers, rows) if rows else "")


def assumptions(result: PilotResult, words: Words) -> str:
    """List what the figures rest on."""
    return section(words.say("assumptions"), listed(map(escape, assumption_lines(result, words))))


def assumption_lines(result: PilotResult, words: Words) -> list[str]:
    """Return what the figures rest on, a line each."""
    environment, data = result.environment, result.data
    lines = [
        words.say(
            "assume_samples",
            evaluation=f"{data.evaluation:,}",
            red_team=f"{data.red_team:,}",
            benign=f"{data.benign:,}",
        ),
        words.say("assume_seeds", seeds=len(result.seeds), list=", ".join(map(str, result.seeds))),
        words.say("assume_time", processor=environment.get("processor", "?"), device=environment.get("device", "?")),
        _energy_line(result, words),
        *(
            words.say(
                "assume_price",
                device=price.device,
                price=number(price.per_hour),
                currency=price.currency,
                speed=number(price.speed),
                assumption=price.assumption,
            )
            for price in result.prices
        ),
    ]
    if result.prices:
        lines.append(words.say("assume_yearly", count=result.trainings_per_year))
    details = [gate.details for arm in result.arms for gate in arm.gates]
    judges = dict.fromkeys(str(detail["judge"]) for detail in details if "judge" in detail)
    lines += [words.say("assume_judge", judge=judge) for judge in judges]
    if any(len(arm.rates) > 1 for arm in result.arms):
        lines.append(words.say("assume_rates"))
    if result.stop_rule:
        lines.append(words.say("assume_stop", rule=result.stop_rule))
    if result.projections:
        lines.append(words.say("assume_hardware"))
    return lines


def _energy_line(result: PilotResult, words: Words) -> str:
    used = {arm.name: arm.last.energy_joules for arm in result.arms if arm.last is not None}
    told = [f"{words.arm(name)} {number(joules / 3600)} Wh" for name, joules in used.items() if joules is not None]
    return words.say("assume_energy", energies="; ".join(told)) if told else words.say("assume_no_energy")


def provenance(result: PilotResult, words: Words) -> str:
    """List base model, data, policy, digests and versions."""
    facts = {
        words.say("model"): result.base_model,
        words.say("data"): result.data.source,
        words.say("wall"): words.seconds(result.wall_seconds),
        **{f"sha256 {name}": digest for name, digest in result.digests.items()},
        **{name: str(value) for name, value in result.environment.items()},
    }
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>\n" for name, text in facts.items())
    return section(words.say("provenance"), f"<dl>\n{lines}</dl>\n")
