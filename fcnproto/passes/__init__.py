"""Rewrites of a net that keep its outputs: pad folding, channels-last convolutions, cropped deconvolutions."""

from fcnproto.passes.rewriting import OptimizedNet, optimize

__all__ = ["OptimizedNet", "optimize"]
