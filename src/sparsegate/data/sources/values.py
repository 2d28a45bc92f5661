"""Turns the values of typed formats into text, one way for all of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import date, datetime, time
from typing import Any


def text_row(row: Mapping[str, Any]) -> dict[str, str]:
    """Return a row with every value as text; columns whose value is missing (null, NaN) are left out.

    Example:
        >>> text_row({"text": "hi", "stars": 5, "urgent": True, "note": None})
        {'text': 'hi', 'stars': '5', 'urgent': 'true'}
    """
    return {str(column): _text(value) for column, value in row.items() if not _is_missing(value)}


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bool | int | float | list | dict):
        return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return str(value)
