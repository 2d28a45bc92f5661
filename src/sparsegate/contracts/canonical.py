"""JSON values, and the one text of each."""

from __future__ import annotations

import json
from typing import Any

JSON = Any


def canonical_json(value: JSON) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, no NaN.

    Example:
        >>> canonical_json({"b": 1, "a": [True, None]})
        '{"a":[true,null],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
