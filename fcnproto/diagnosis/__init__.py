"""Why does a net not learn? `check` looks at a net, its solver, its data and a few steps, and returns findings.

The rules about nets themselves are in the room `checking`; here are those that need solvers, files, images or steps,
and the reading of what they examine (`subject.py`).
"""

from __future__ import annotations

from fcnproto.checking.findings import Finding, Level
from fcnproto.diagnosis.grave import grave_findings
from fcnproto.diagnosis.run import Report, check, examine

__all__ = ["Finding", "Level", "Report", "check", "examine", "grave_findings"]
