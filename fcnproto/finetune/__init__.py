"""Fine-tuning a net on one's own images and masks, in one call: `run(plan(settings))`.

Makes the nets and the solver for the classes, moves the weights over (`fcnproto.surgery`), trains with
`fcnproto.Solver` and keeps the weights with the best mean IU on the validation images. `plan(settings).lines()` says
what would be done; `run` goes on where the same fine-tuning was interrupted.
"""

from __future__ import annotations

from fcnproto.finetune.planned import Plan
from fcnproto.finetune.run import Outcome, plan, run, run_staged, staged
from fcnproto.finetune.settings import OPTIMIZATIONS, Settings

__all__ = ["OPTIMIZATIONS", "Outcome", "Plan", "Settings", "plan", "run", "run_staged", "staged"]
