"""Surgery: making nets and weights out of others, as the FCN papers did. Every operation reports what it did.

Dense scores without interpolation: `shift_and_stitch`, `rarefy`.

On weights: `transplant`, `interpolate`, `expand_score`, `transfer_classes`, `widen_input`, `early_fusion`,
`late_fusion`. On definitions: `convolutionalise`, `add_scores`, `set_classes`, `score_layers`. On both:
`fold_normalisation`.
"""

from __future__ import annotations

from fcnproto.surgery.dense import Dense, rarefy, shift_and_stitch
from fcnproto.surgery.nets import add_scores, convolutionalise, score_layers, set_classes
from fcnproto.surgery.normalisation import fold_normalisation
from fcnproto.surgery.report import Report, Step
from fcnproto.surgery.sources import Source, opened
from fcnproto.surgery.weights import (
    bilinear_filter,
    early_fusion,
    expand_score,
    interpolate,
    late_fusion,
    transfer_classes,
    transplant,
    widen_input,
    with_interpolation,
)

__all__ = [
    "Dense",
    "Report",
    "Source",
    "Step",
    "add_scores",
    "bilinear_filter",
    "convolutionalise",
    "early_fusion",
    "expand_score",
    "fold_normalisation",
    "interpolate",
    "late_fusion",
    "opened",
    "rarefy",
    "score_layers",
    "set_classes",
    "shift_and_stitch",
    "transfer_classes",
    "transplant",
    "widen_input",
    "with_interpolation",
]
