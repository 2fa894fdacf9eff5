"""What is wrong with a net, its solver or its data before any time is spent on them: rules that return findings.

A rule is a function of what it examines (see `rules.py`); it changes nothing and prints nothing.
"""

from __future__ import annotations

from fcnproto.check.findings import Finding, Level

__all__ = ["Finding", "Level"]
