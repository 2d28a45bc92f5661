"""Judges of free text, by name. A judge is a function of prompt and response.

To add one: a file here with a function, and one line in the table. Other packages add theirs by the entry point group
``sparsegate.judges``.
"""

from __future__ import annotations

from collections.abc import Mapping

from sparsegate_gates.judges import lexical
from sparsegate_gates.judges.judgement import Judge, Judgement
from sparsegate_gates.plugins import look_up

__all__ = ["JUDGES", "Judge", "Judgement", "load_judge"]

JUDGES: Mapping[str, Judge] = {
    "lexical": lexical.judge,
}


def load_judge(name: str) -> Judge:
    """Return the judge of a name.

    Raises:
        ConfigError: If there is none, listing the names that there are.
    """
    judge: Judge = look_up(name, JUDGES, group="sparsegate.judges", kind="judge")
    return judge
