"""Options of the benchmark: what is understood, and what is refused before anything runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from sparsegate.config import PRESETS, TrainingConfig
from sparsegate.errors import ConfigError, ExitCode, UsageError
from sparsegate.workflow.bench.methods import METHODS
from sparsegate.workflow.bench.options import DEFAULT_METHODS, BenchOptions, SparseSetting, check_options, parse_sparse


def test_a_sparse_setting_is_read_in_any_order() -> None:
    expected = SparseSetting("element", density=0.01, cut=0.5, selector="random", cached=True)
    assert parse_sparse("element:density=0.01:cut=0.5:selector=random:cached") == expected
    assert parse_sparse("element:cached:selector=random:cut=0.5:density=0.01") == expected


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("colum", r"unknown support 'colum'; did you mean 'column'\?"),
        ("column:densty=0.1", r"unknown setting 'densty'; did you mean 'density'\?"),
        ("column:density=much", "density must be a number, got 'much'"),
        ("column:density", "density needs a value"),
        ("column:density=nan", r"density must be in \(0, 1\], got nan"),
        ("column:density=1.5", r"density must be in \(0, 1\], got 1.5"),
        ("column:density=0.1:density=0.2", "'density' stands twice"),
        ("column:cut=1", r"cut must be in \[0, 1\), or auto, got 1"),
        ("column:cut=atuo", "cut must be a number or auto, got 'atuo'"),
        ("column:allocation=globl", "unknown allocation 'globl'; did you mean 'global'"),
        ("column:cut=0.5:cached=yes", "cached takes no value, got 'yes'"),
        ("column:refresh=-1", "refresh must be at least 0, got -1"),
        ("column:refresh=0.5", "refresh must be a whole number, got '0.5'"),
        ("column:cached", "cached needs a cut above 0"),
        ("column:cut=0.5:cached:plain_loss", "and our loss"),
    ],
)
def test_a_wrong_sparse_setting_says_what_is_wrong(setting: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_sparse(setting)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_what_retrain_trains_and_may_be_changed(name: Literal["default", "lean"]) -> None:
    trained = TrainingConfig(preset=name).resolved()
    setting = parse_sparse(name)
    assert (setting.density, setting.cut, setting.selector) == (trained.density, trained.frozen_depth, trained.selector)
    assert (setting.support, setting.cached) == (trained.support, trained.cache_prefix)
    assert parse_sparse(f"{name}:density=0.3") == replace(setting, density=0.3)


def test_every_default_method_is_in_the_table_and_well_formed() -> None:
    check_options(BenchOptions(), list(METHODS))
    assert {name.partition(":")[0] for name in DEFAULT_METHODS} == set(METHODS)


def test_all_problems_are_reported_at_once() -> None:
    options = BenchOptions(methods=("lroa", "lora:rank=8", "full", "full", "sparse:colum"), steps=0, supervised=128)
    with pytest.raises(ConfigError) as caught:
        check_options(options, list(METHODS))
    problems = str(caught.value)
    for part in (
        "steps must be at least 1, got 0",
        "tokens must be above supervised, got 128 and 128",
        "unknown method 'lroa'; did you mean 'lora'?",
        "'lora:rank=8': lora takes no settings",
        "'full' stands twice",
        "unknown support 'colum'",
    ):
        assert part in problems
    assert len(caught.value.problems) == 6
    assert caught.value.exit_code is ExitCode.USAGE


def test_no_methods_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="methods names none"):
        check_options(BenchOptions(methods=()), list(METHODS))
