"""How products of float32 numbers are computed: exactly by default; in TF32, bfloat16 or float16 when asked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from fcnproto.errors import UsageError

_MODES = ("highest", "tf32")
_mode = "highest"

PRECISIONS: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""What convolutions and matrix products may be asked to be computed in, in inference and in training: the names that
every function and command takes, with the type of the factors. tf32 rounds float32 factors, on CUDA alone."""

_LONG_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "half": "fp16"}


def canonical(name: str) -> str:
    """The name in `PRECISIONS` that `name`, short or long, stands for; `UsageError` for others."""
    found = _LONG_NAMES.get(name, name)
    if found not in PRECISIONS:
        raise UsageError(f"precision {name!r} is unknown; choose one of {', '.join(PRECISIONS)}")
    return found


@contextlib.contextmanager
def computing(name: str, device: torch.device) -> Iterator[None]:
    """Compute convolutions and matrix products in this precision of `PRECISIONS`.

    bf16 and fp16 through torch's autocast: what needs float32 (normalisation, softmax, losses) stays in it, and
    parameters are not touched. tf32 has an effect on CUDA alone. In a net that is not float32, nothing changes.
    """
    dtype = PRECISIONS[name]
    # No cache of cast weights: each is read once in a pass, and a recorded CUDA graph would outlive it.
    lower = (
        contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype, cache_enabled=False)
    )
    with lower:
        if name != "tf32":
            yield
            return
        before = _mode
        set_float32_precision("tf32")
        try:
            yield
        finally:
            set_float32_precision(before)
            apply()


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
