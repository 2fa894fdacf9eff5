"""Drawn scenes: images with exact labels made by the package itself, and the data layers that give them to nets.

Importing this package registers those layers.
"""

from fcnproto.scenes import layer

__all__ = ["layer"]
