"""How float32 products are computed on a GPU: exactly by default, in TF32 only when asked for."""

from __future__ import annotations

import torch

from fcnproto.errors import UsageError

_MODES = ("highest", "tf32")
_mode = "highest"


def set_float32_precision(mode: str) -> None:
    """Choose "highest" (strict float32, the default) or "tf32" for convolutions and matrix products on CUDA.

    The setting is torch's own process-wide one; it is applied when a net runs on a GPU, so that gradients computed
    after the call follow it too. Raises `UsageError` for another mode.
    """
    global _mode
    if mode not in _MODES:
        raise UsageError(f"precision {mode!r}: expected {' or '.join(map(repr, _MODES))}")
    _mode = mode


def apply() -> None:
    """Put the chosen precision in force for cuDNN convolutions and cuBLAS products."""
    # The older of torch's two interfaces: after the newer one is used, reading the older one is an error, which would
    # break programs that still do.
    torch.backends.cudnn.allow_tf32 = _mode == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = _mode == "tf32"
