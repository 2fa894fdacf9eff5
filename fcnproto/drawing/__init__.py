"""Drawings of nets: layers as boxes, blobs as arrows with their shapes; as SVG, PNG, or a page to explore."""

from fcnproto.drawing.diagram import Diagram, layer_params, make_diagram
from fcnproto.drawing.layout import Layout, lay_out
from fcnproto.drawing.svg import to_image, to_svg

__all__ = ["Diagram", "Layout", "lay_out", "layer_params", "make_diagram", "to_image", "to_svg"]
