"""Can the gates of a policy pass at the sizes at hand, and how many items do they lack?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from sparsegate.contracts import JSON, Sample
from sparsegate.evaluation.judge_error import JudgeCalibration

if TYPE_CHECKING:
    from sparsegate_gates.policy import Policy


@dataclass(frozen=True)
class Sizes:
    """How many items there are to judge by.

    Args:
        train: Training samples.
        evaluation: Evaluation samples.
        red_team: Harmful requests.
        benign: Harmless requests.
        canaries: Canaries by ``harmful`` and ``refused``, each true or false, such as ``{"harmful=True": 8}``.
        labels: Evaluation samples of each label; empty for a generation task.
        slices: Evaluation samples of each slice, keyed ``column=value``.
        general: General texts.
    """

    train: int
    evaluation: int
    red_team: int
    benign: int
    canaries: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    slices: Mapping[str, int] = field(default_factory=dict)
    general: int = 0

    @classmethod
    def of(
        cls,
        *,
        train: Sequence[Sample],
        evaluation: Sequence[Sample],
        red_team: int,
        benign: int,
        canaries: Sequence[Mapping[str, JSON]],
        by_label: bool,
        general: int = 0,
    ) -> Sizes:
        """Count what a run has."""
        columns = sorted({column for sample in evaluation for column in sample.slices})
        return cls(
            train=len(train),
            evaluation=len(evaluation),
            red_team=red_team,
            benign=benign,
            canaries=Counter(f"{fault}={row[fault]}" for row in canaries for fault in ("harmful", "refused")),
            labels=Counter(f"label={sample.response}" for sample in evaluation) if by_label else {},
            slices=Counter(f"{c}={sample.slices.get(c, '(missing)')}" for sample in evaluation for c in columns),
            general=general,
        )

    def slices_but(self, column: str | None) -> dict[str, int]:
        """Return the slices without those of a column that makes none."""
        return {name: n for name, n in self.slices.items() if column is None or not name.startswith(f"{column}=")}

    def faultless_judge(self, fault: str) -> JudgeCalibration | None:
        """Return what the canaries can show of a judge at best; None if one kind is missing."""
        with_label, without = (self.canaries.get(f"{fault}={label}", 0) for label in (True, False))
        return JudgeCalibration(with_label, with_label, without, without) if with_label and without else None


@dataclass(frozen=True)
class Need:
    """What one question of a gate asks for.

    Args:
        question: The question.
        items: What is counted, such as ``evaluation``.
        has: Items at hand.
        needed: Items at which a faultless model passes; None if it can't at any number.
        worst: The worst measurement that still passes at the items at hand, in words; empty if there is none to give.
    """

    question: str
    items: str
    has: int
    needed: int | None
    worst: str = ""

    @property
    def can_pass(self) -> bool:
        return self.needed is not None and self.has >= self.needed

    @property
    def lacks(self) -> int | None:
        return None if self.needed is None else max(0, self.needed - self.has)

    def to_json(self) -> dict[str, JSON]:
        return {**asdict(self), "can_pass": self.can_pass, "lacks": self.lacks}


@runtime_checkable
class Countable(Protocol):
    """Settings of a gate that judges by counting items."""

    def needs(self, sizes: Sizes) -> list[Need]:
        """Say what each question asks for."""
        ...


def lint(policy: Policy, sizes: Sizes) -> dict[str, list[Need]]:
    """Return what each gate of a policy asks for; gates that count no items ask for nothing.

    Args:
        policy: The policy.
        sizes: What there is.
    """
    return {
        name: settings.needs(sizes) if isinstance(settings, Countable) else []
        for name, settings in policy.gates.items()
    }


def at_least_items(minimum_n: int, needed: int | None) -> int | None:
    """Return the larger of a policy's minimum and of what the bound needs."""
    return None if needed is None else max(minimum_n, needed)


def smallest_group(groups: Mapping[str, int], minimum_n: int, *, block: bool) -> tuple[str, int] | None:
    """Return name and size of the smallest group that is judged; None if none is."""
    judged = {name: n for name, n in groups.items() if block or n >= minimum_n}
    return min(judged.items(), key=lambda entry: entry[1]) if judged else None
