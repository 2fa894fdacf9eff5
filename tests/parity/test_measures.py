"""Measures of distance, and what departures are called."""

from __future__ import annotations

import numpy as np
import pytest
import torch.nn.functional as F
from torch import from_numpy

from fcnproto.parity.diagnosis import describe
from fcnproto.parity.measures import ULP_LIMITS, measure

DRAW = np.random.default_rng(0)
BLOB = DRAW.standard_normal((2, 5, 12, 14)).astype(np.float32)


def test_numbers_of_a_small_example() -> None:
    found = measure(np.array([1.0, 2.0, -4.0]), np.array([1.0, 2.5, -5.0]))
    assert found.max_abs == 1.0
    assert found.max_rel == pytest.approx(1 / 5)
    assert found.mean_rel == pytest.approx(1.5 / 8.5)
    assert found.cosine == pytest.approx(26 / np.sqrt(21 * 32.25))
    assert found.argmax is None


def test_ulp_histogram_counts_float32_steps() -> None:
    base = np.float32(3.0)
    values = [base]
    for _ in range(4):
        values.append(np.nextafter(values[-1], np.float32(10)))
    found = measure(np.array([*values, 0.0, 6.0], np.float32), np.array([base] * 5 + [-0.0, 3.0], np.float32))
    assert found.ulps[ULP_LIMITS.index(0)] == 2  # itself, and the two zeros
    assert found.ulps[ULP_LIMITS.index(1)] == 1
    assert found.ulps[ULP_LIMITS.index(3)] == 2
    assert found.ulps[ULP_LIMITS.index(15)] == 1
    assert found.ulps[-1] == 1  # 3 and 6 are 2^23 steps apart
    assert sum(found.ulps) == 7


def test_steps_across_zero() -> None:
    tiny = np.array([1e-45], np.float32)
    assert measure(tiny, -tiny).ulps[ULP_LIMITS.index(3)] == 1


def test_argmax_agreement() -> None:
    other = BLOB.copy()
    other[0, :, 0, :7] = -other[0, :, 0, :7]
    expected = (other.argmax(1) == BLOB.argmax(1)).mean()
    assert measure(other, BLOB, scores=True).argmax == pytest.approx(expected)
    assert expected < 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(value: float) -> None:
    other = BLOB.copy()
    other[0, 0, 0, 0] = value
    assert not np.isfinite(measure(other, BLOB).max_rel)
    assert measure(other, other).max_rel == 0


def test_zero_reference() -> None:
    assert measure(np.array([0.25]), np.array([0.0])).max_rel == 0.25
    assert measure(np.zeros(3), np.zeros(3)).cosine == 1


def test_chunks_give_the_same_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    other = BLOB + np.float32(1e-3) * DRAW.standard_normal(BLOB.shape).astype(np.float32)
    whole = measure(other, BLOB)
    monkeypatch.setattr("fcnproto.parity.measures._CHUNK", 97)
    parts = measure(other, BLOB)
    assert parts.max_rel == whole.max_rel
    assert parts.ulps == whole.ulps
    assert parts.cosine == pytest.approx(whole.cosine)


def border(width: int) -> np.ndarray:
    other = BLOB.copy()
    noise = DRAW.standard_normal(BLOB.shape).astype(np.float32)
    noise[:, :, width:-width, width:-width] = 0
    return other + noise


def last_rows() -> np.ndarray:
    other = BLOB.copy()
    other[:, :, -1] += 1 + DRAW.random(other[:, :, -1].shape, np.float32)
    return other


CASES = {
    "scale": (BLOB / 255, "1/255"),
    "offset": (BLOB - 3, "constant offset"),
    "offset of channels": (BLOB + np.arange(5, dtype=np.float32)[:, None, None], "offset in each channel"),
    "factor of channels": (BLOB * (1 + np.arange(5, dtype=np.float32))[:, None, None], "factor in each channel"),
    "reversed channels": (BLOB[:, ::-1], "channels in reverse"),
    "permuted channels": (BLOB[:, [2, 0, 1, 4, 3]], "channels in another order"),
    "mirrored": (BLOB[..., ::-1], "mirrored: left and right"),
    "shifted": (np.roll(BLOB, (1, -2), (2, 3)), "shifted by 1 down and -2 to the right"),
    "border": (border(1), "within 1 of the border: padding"),
    "wider border": (border(2), "within 2 of the border: padding"),
    "last row": (last_rows(), "pooling rule"),
    "zero": (np.zeros_like(BLOB), "ours is zero"),
    "half": (BLOB.astype(np.float16).astype(np.float32), "lower precision"),
    "rounding": (BLOB * (1 + 1e-6 * DRAW.standard_normal(BLOB.shape)), "rounding"),
    "NaN": (np.where(BLOB > 2, np.nan, BLOB), "not finite"),
    "random": (DRAW.permutation(BLOB.ravel()).reshape(BLOB.shape), "no known pattern"),
    "rectified": (np.maximum(BLOB, 0), "before a ReLU"),
}


@pytest.mark.parametrize("name", CASES)
def test_pattern(name: str) -> None:
    ours, expected = CASES[name]
    assert expected in describe(np.ascontiguousarray(ours), BLOB, "Convolution")


def test_few_places() -> None:
    other = BLOB.copy()
    other[0, 2, 6, 7] += 1
    assert "only at 1 places" in describe(other, BLOB)


def test_pooling_rounded_the_other_way() -> None:
    x = from_numpy(BLOB)[..., :13]
    up, down = (F.max_pool2d(x, 2, 2, ceil_mode=ceil).numpy() for ceil in (True, False))
    assert "pooling rule" in describe(up, down, "Pooling")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((2, 12, 14, 5), "channels last"), ((2, 5, 168), "reshaped"), ((2, 6, 12, 14), "number of channels")],
)
def test_shapes(shape: tuple[int, ...], expected: str) -> None:
    assert expected in describe(BLOB, np.zeros(shape))
