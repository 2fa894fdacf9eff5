"""Training as Caffe trains: solvers, learning-rate policies, snapshots, and the loop around them."""

from fcnproto.solver.engine import Options
from fcnproto.solver.health import DivergedError
from fcnproto.solver.listeners import Listener, Request
from fcnproto.solver.loggers import CSVLogger, TensorBoardLogger
from fcnproto.solver.optimizers import SGD, AdaDelta, AdaGrad, Adam, CaffeOptimizer, Nesterov, RMSProp, param_groups
from fcnproto.solver.policies import LearningRatePolicy
from fcnproto.solver.solver import Solver

__all__ = [
    "SGD",
    "AdaDelta",
    "CSVLogger",
    "TensorBoardLogger",
    "AdaGrad",
    "Adam",
    "CaffeOptimizer",
    "DivergedError",
    "LearningRatePolicy",
    "Listener",
    "Nesterov",
    "Options",
    "RMSProp",
    "Request",
    "Solver",
    "param_groups",
]
