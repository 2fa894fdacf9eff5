"""Moving a folder of Caffe's nets elsewhere: found, paired with weights, compared, converted, reported."""

from fcnproto.migration.moving import TARGETS, Outcome, migrate

__all__ = ["TARGETS", "Outcome", "migrate"]
