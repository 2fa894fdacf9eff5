"""What is wrong with a net before any time is spent on it: rules that return findings.

A rule is a function of what it examines (see `rules.py`); it changes nothing and prints nothing. The kinds of findings
and their texts are in `kinds.py`. What needs solvers, data or a few steps is in the room `diagnosis`.
"""

from __future__ import annotations

from fcnproto.checking.findings import Finding, Level

__all__ = ["Finding", "Level"]
