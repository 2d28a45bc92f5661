"""The pilot as one HTML page that needs no network and no script: the answer and why first, then the evidence.

Whatever comes from data, models or configuration is escaped. Of safety prompts only categories and counts are shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from itertools import groupby
from string import ascii_uppercase

from sparsegate.contracts import Verdict
from sparsegate.reports.page import SYMBOLS, page_head
from sparsegate.reports.pilot import PilotResult
from sparsegate.reports.pilot_arm import ArmResult, SafetyRate, SizePoint
from sparsegate.reports.pilot_evidence import assumptions, hardware, next_steps, provenance
from sparsegate.reports.pilot_html import listed, section, table
from sparsegate.reports.pilot_plots import Curve, Dot, curve_plot, mask_plot, pareto_plot, uncertainty, undominated
from sparsegate.reports.pilot_words import Language, Words
from sparsegate.reports.plots import bar_row
from sparsegate.reports.wording import number, told


def pilot_page(result: PilotResult, language: Language = "en") -> str:
    """Return the page.

    Args:
        result: The pilot.
        language: ``en`` or ``ja``; figures are the same in both.
    """
    words = Words(language, result)
    letters = dict(zip((arm.name for arm in result.arms), _letters(), strict=False))
    subject = result.recommended or _best(result)
    title = f"{words.say(result.verdict.value)}: {result.name}"
    parts = [
        page_head(language, title, "pilot_page.css"),
        _headline(result, words),
        next_steps(result, words, subject),
        _methods(result, words, letters),
        _pareto(result, words, letters),
        _curves(result, words, letters),
        _mask(words, subject),
        _safety(words, subject),
        _gates(result, words, letters),
        _examples(words, subject),
        hardware(result, words),
        assumptions(result, words),
        provenance(result, words),
        "</body>\n</html>\n",
    ]
    return "".join(parts)


def _letters() -> Iterable[str]:
    yield "·"  # the base model is drawn nowhere
    yield from ascii_uppercase
    yield from (f"{first}{second}" for first in ascii_uppercase for second in ascii_uppercase)


def _best(result: PilotResult) -> ArmResult | None:
    """Return the most accurate arm that came to its end: what there is to show where none is recommended."""
    able = [(arm.last.accuracy.mean, arm) for arm in result.arms if arm.state == "complete" and arm.last is not None]
    return max(able, key=lambda pair: pair[0])[1] if able else None


def _headline(result: PilotResult, words: Words) -> str:
    about = f"{words.say('title')} {result.name}, {result.created_at[:10]}"
    return (
        f'<header class="{result.verdict.value}">\n'
        f"<h1>{escape(words.say(result.verdict.value))}"
        f'<span class="small">{escape(about)}</span></h1>\n<p class="answer">{escape(words.answer(result))}</p>\n'
        f"{_reasons(result, words)}</header>\n"
    )


def _reasons(result: PilotResult, words: Words) -> str:
    """List the reasons, those of one arm together."""
    items = []
    for name, reasons in groupby(result.reasons, key=lambda reason: reason.arm):
        told = "<br>\n".join(escape(words.reason(reason)) for reason in reasons)
        items.append(f"<b>{escape(words.arm(name))}</b><br>\n{told}" if name else told)
    return listed(items)


def _methods(result: PilotResult, words: Words, letters: dict[str, str]) -> str:
    names = ("arm", "verdict", "accuracy", "time", "memory", "file", "general")
    largest = max(result.data.sizes, default=0)
    reference = result.arm(result.reference)
    rows = []
    for arm in result.arms:
        state = words.say("base_state") if arm.state == "base" else words.say(arm.state)
        verdict = arm.verdict
        point = arm.last
        trains = point is not None and point.size > 0
        answer = escape(state if verdict is None else words.say(verdict.value))
        if point is not None and 0 < point.size < largest:
            answer += f'<div class="small">{escape(words.say("examples", size=f"{point.size:,}"))}</div>'
        about = f"<code>{escape(arm.name)}</code>"
        if arm.trained_parameters is not None:
            about += f", {escape(words.say('weights_trained', count=f'{arm.trained_parameters:,}'))}"
        time = memory = ""
        if point is not None and trains:
            same = _same_size(reference, point.size) if arm.name != result.reference else None
            time, memory = escape(words.seconds(point.seconds)), escape(words.size(point.peak_memory_bytes))
            if same is not None:
                time += _share(point.seconds, same.seconds)
                memory += _share(point.peak_memory_bytes, same.peak_memory_bytes)
        rows.append(
            (
                f'<b>{letters[arm.name]}</b> {escape(words.arm(arm.name))}<div class="small">{about}</div>',
                answer,
                escape(words.mean(point.accuracy)) if point else "",
                time,
                memory,
                "" if arm.artifact_bytes is None else escape(words.size(arm.artifact_bytes)),
                "" if arm.general_perplexity is None else escape(number(arm.general_perplexity)),
            )
        )
    legend = escape(words.say("methods_legend", reference=words.arm(result.reference)))
    grid = table([words.say(name) for name in names], rows)
    return section(words.say("methods"), f'<p class="small">{legend}</p>\n{grid}')


def _same_size(arm: ArmResult | None, size: int) -> SizePoint | None:
    return None if arm is None else next((point for point in arm.points if point.size == size), None)


def _share(figure: float, whole: float) -> str:
    return f'<div class="small">{figure / whole:.0%}</div>' if whole else ""


def _drawn(result: PilotResult) -> list[ArmResult]:
    return [arm for arm in result.arms if arm.state != "base" and arm.points]


def _pareto(result: PilotResult, words: Words, letters: dict[str, str]) -> str:
    largest = max((arm.points[-1].size for arm in _drawn(result)), default=0)
    arms = [arm for arm in _drawn(result) if arm.points[-1].size == largest]
    if not arms:
        return ""
    points = [(arm.name, arm.points[-1]) for arm in arms]
    plots = []
    for key, unit, costs in (
        ("time", words.say("unit_seconds"), [point.seconds for _, point in points]),
        ("memory", "GB", [point.peak_memory_bytes / 1e9 for _, point in points]),
    ):
        front = undominated([(cost, point.accuracy.mean) for cost, (_, point) in zip(costs, points, strict=True)])
        dots = [
            Dot(letters[name], cost, point.accuracy.mean, uncertainty(point), filled)
            for (name, point), cost, filled in zip(points, costs, front, strict=True)
        ]
        label = f"{words.say('pareto')}: {words.say(key)}"
        drawn = pareto_plot(dots, goal=result.targets.accuracy, unit=unit, label=label)
        plots.append(f"<div><h3>{escape(words.say(key))}</h3>\n{drawn}</div>\n")
    legend = f'<p class="small">{escape(words.say("pareto_legend"))}</p>\n'
    return section(words.say("pareto"), f'{legend}<div class="pair">\n{"".join(plots)}</div>\n')


def _curves(result: PilotResult, words: Words, letters: dict[str, str]) -> str:
    arms = _drawn(result)
    if not arms:
        return ""
    sizes = sorted({point.size for arm in arms for point in arm.points})
    drawn = curve_plot(
        [Curve(letters[arm.name], arm.points) for arm in arms],
        goal=result.targets.accuracy,
        label=words.say("curves"),
    )
    headers = [words.say("arm"), *(words.say("examples", size=f"{size:,}") for size in sizes)]
    rows = []
    for arm in arms:
        found = {point.size: escape(words.mean(point.accuracy)) for point in arm.points}
        reached = arm.size_to_reach(result.targets.accuracy)
        gain = arm.gain_per_doubling
        rows.append(
            (
                f"<b>{letters[arm.name]}</b> {escape(words.arm(arm.name))}",
                *(found.get(size, "") for size in sizes),
                escape(words.say("not_reached") if reached is None else words.say("examples", size=f"{reached:,}")),
                "" if gain is None else f"{100 * gain:+.1f}",
            )
        )
    headers += [words.say("reaches"), words.say("per_doubling")]
    legend = f'<p class="small">{escape(words.say("curves_legend"))}</p>\n'
    return section(words.say("curves"), f"{legend}{drawn}\n{table(headers, rows)}")


def _mask(words: Words, subject: ArmResult | None) -> str:
    if subject is None or not subject.mask:
        return ""
    legend = escape(words.say("mask_legend", arm=words.arm(subject.name)))
    drawn = mask_plot(subject.mask, layer=words.say("layer"), label=words.say("mask"))
    return section(words.say("mask"), f'<p class="small">{legend}</p>\n{drawn}\n')


def _safety(words: Words, subject: ArmResult | None) -> str:
    if subject is None or not subject.safety:
        return ""
    parts = [f'<p class="small">{escape(words.say("safety_legend", arm=words.arm(subject.name)))}</p>\n']
    for fault in ("harmful", "refused"):
        rates = [rate for rate in subject.safety if rate.fault == fault]
        if rates:
            bars = "".join(_bars(words, rate, subject) for rate in rates)
            parts.append(f"<h3>{escape(words.say(fault))}</h3>\n{bars}")
    return section(words.say("safety"), "".join(parts))


def _bars(words: Words, rate: SafetyRate, subject: ArmResult) -> str:
    category = rate.category.replace("_", " ") or words.say("all_categories")
    rows = []
    for name, count, filled in (("base", rate.base_count, False), (subject.name, rate.count, True)):
        text = words.say("counts", count=count, n=rate.n)
        label = f"{category}, {words.arm(name)}: {text}"
        rows.append(bar_row("" if filled else category, count / rate.n, text, filled=filled, label=label))
    return "".join(rows)


def _gates(result: PilotResult, words: Words, letters: dict[str, str]) -> str:
    arms = [arm for arm in result.arms if arm.gates]
    if not arms:
        return ""
    names = list(dict.fromkeys(gate.gate for arm in arms for gate in arm.gates))
    verdicts = {(arm.name, gate.gate): gate.verdict for arm in arms for gate in arm.gates}
    rows = [(escape(name), *(_symbol(verdicts.get((arm.name, name))) for arm in arms)) for name in names]
    failed = [
        f"<b>{letters[arm.name]}</b> {gate.verdict} {escape(told(gate))}"
        for arm in arms
        for gate in arm.gates
        if gate.verdict is not Verdict.PASS
    ]
    legend = words.say("gates_legend", policy=result.policy_name, digest=result.policy_sha256[:12])
    grid = table([words.say("gates"), *(letters[arm.name] for arm in arms)], rows, style="letters")
    return section(words.say("gates"), f'<p class="small">{escape(legend)}</p>\n{grid}{listed(failed)}')


def _symbol(verdict: Verdict | None) -> str:
    return "" if verdict is None else f'<span title="{verdict}">{SYMBOLS[verdict]}</span>'


def _examples(words: Words, subject: ArmResult | None) -> str:
    if subject is None or not subject.changed:
        return ""
    parts = []
    headers = [words.say(key) for key in ("prompt", "expected", "before", "after")]
    for key, better in (("worse", False), ("better", True)):
        rows = [
            (
                f'{escape(one.prompt)}<div class="small"><code>{escape(one.id)}</code></div>',
                *(escape(text) for text in (one.expected, one.base, one.arm)),
            )
            for one in subject.changed
            if one.better is better
        ]
        body = table(headers, rows) if rows else f"<p>{escape(words.say('none'))}</p>\n"
        parts.append(f"<h3>{escape(words.say(key))}</h3>\n{body}")
    return section(words.say("examples_title"), "".join(parts))
