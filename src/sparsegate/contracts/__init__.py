"""The one page everyone reads: what the parts hand to each other.

samples.py   what goes into models and what comes out
sparse.py    shapes of what is trained, and the selectors that score it
verdicts.py  verdicts, and the checks that lead to them
gates.py     what a gate may read and what it answers; waivers
runs.py      what went into a run, and what it cost
canonical.py JSON values, and the one text of each

Nothing here imports torch, transformers, lightning, mlflow or Great Expectations.
"""

from sparsegate.contracts.canonical import JSON, canonical_json
from sparsegate.contracts.gates import Gate, GateContext, GateResult, Waiver
from sparsegate.contracts.runs import NOT_INSTALLED, CostReport, RunManifest
from sparsegate.contracts.samples import Attack, EncodedSample, Generation, Prediction, Sample, Task, TextScore
from sparsegate.contracts.sparse import Allocation, CalibrationStats, MaskSelector, Statistic, SupportKind, UnitSelector
from sparsegate.contracts.verdicts import Check, Interval, Verdict, worst

__all__ = [
    "JSON",
    "NOT_INSTALLED",
    "Allocation",
    "Attack",
    "CalibrationStats",
    "Check",
    "CostReport",
    "EncodedSample",
    "Gate",
    "GateContext",
    "GateResult",
    "Generation",
    "Interval",
    "MaskSelector",
    "Prediction",
    "RunManifest",
    "Sample",
    "Statistic",
    "SupportKind",
    "Task",
    "TextScore",
    "UnitSelector",
    "Verdict",
    "Waiver",
    "canonical_json",
    "worst",
]
