"""Where several processes share the tests, each computes on one core; what optimised nets do is fixed."""

from __future__ import annotations

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same inputs give the same bits at every call, unless a test asks for more; and by the rewritten plan, which the rule
# takes for larger nets than those of the tests.
os.environ["FCNPROTO_TUNING"] = "off"


@pytest.fixture(autouse=True)
def rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let optimised nets run their rewritten plans, however little there is to compute."""
    monkeypatch.setattr("fcnproto.passes.choosing._LEAST_WORK", 0)
