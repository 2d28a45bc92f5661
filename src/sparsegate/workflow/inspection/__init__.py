"""What a delta changes, read from its file alone: no base model is loaded.

``result.py`` is what is found, ``table.py`` and ``plot.py`` show it.
"""
