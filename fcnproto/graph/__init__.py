"""The layer graph: filtering by phase, level and stage, blob versions, splits, coordinate maps. No tensors here."""

from fcnproto.graph.graph import AUTOMATIC, Blob, Graph, Node, build_graph
from fcnproto.graph.rules import is_kept, net_state, phase_value

__all__ = ["AUTOMATIC", "Blob", "Graph", "Node", "build_graph", "is_kept", "net_state", "phase_value"]
