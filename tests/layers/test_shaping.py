"""The layers that move values, against numpy, and what they refuse."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_maker import make_layer, seeded

from fcnproto.errors import LayerError
from fcnproto.layers.base import Layer

SHAPE = st.lists(st.integers(1, 4), min_size=1, max_size=5)


def shape_on_meta(layer: Layer, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(copy.deepcopy(layer)(*(torch.empty(shape, device="meta") for shape in shapes)).shape)


@given(shape=SHAPE, place=st.floats(0, 0.99), extents=st.lists(st.integers(0, 3), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_concat_and_slice_undo_each_other(shape: list[int], place: float, extents: list[int]) -> None:
    axis = int(place * len(shape))
    extents = [*(max(extent, 1) for extent in extents[:-1]), extents[-1]]
    parts = [seeded(*shape[:axis], n, *shape[axis + 1 :], seed=i) for i, n in enumerate(extents)]
    concat = make_layer(f'type: "Concat" concat_param {{ axis: {axis - len(shape)} }}', *(p.shape for p in parts))
    whole = concat(*parts)
    np.testing.assert_array_equal(whole.numpy(), np.concatenate([p.numpy() for p in parts], axis))
    points = " ".join(f"slice_point: {p}" for p in np.cumsum(extents)[:-1])
    cut = make_layer(f'type: "Slice" slice_param {{ axis: {axis} {points} }}', whole.shape, tops=len(parts))(whole)
    for part, again in zip(parts, cut if len(parts) > 1 else (cut,), strict=True):
        assert torch.equal(part, again)


def test_slice_without_points_divides_evenly() -> None:
    x = seeded(2, 6, 2)
    tops = make_layer('type: "Slice"', x.shape, tops=3)(x)
    assert [top.shape for top in tops] == [(2, 2, 2)] * 3 and torch.equal(torch.cat(tops, 1), x)


@given(
    extents=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(0, 2)), min_size=2, max_size=5),
    axis=st.integers(0, 4),
    single=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_crop(extents: list[tuple[int, int, int]], axis: int, single: bool) -> None:
    """Extents are (size wanted, offset, what is left behind it)."""
    axis = min(axis, len(extents) - 1)
    if single:
        extents = [(size, extents[-1][1], rest) for size, _, rest in extents]
    shape = tuple(sum(extent) for extent in extents)
    reference = tuple(9 if i < axis else extent[0] for i, extent in enumerate(extents))
    offsets = [extent[1] for extent in extents[axis:]][: 1 if single else None]
    text = " ".join(f"offset: {offset}" for offset in offsets)
    layer = make_layer(f'type: "Crop" crop_param {{ axis: {axis - len(shape)} {text} }}', shape, reference)
    x = seeded(*shape)
    region = tuple(slice(o, o + n) if i >= axis else slice(None) for i, (n, o, _) in enumerate(extents))
    np.testing.assert_array_equal(layer(x, torch.zeros(reference)).numpy(), x.numpy()[region])
    assert shape_on_meta(layer, shape, reference) == tuple(x.numpy()[region].shape)


def test_crop_gradient_is_zero_outside_and_absent_for_the_reference() -> None:
    layer = make_layer('type: "Crop" crop_param { offset: 1 }', (1, 1, 4, 4), (1, 1, 2, 2))
    x, reference = torch.zeros(1, 1, 4, 4, requires_grad=True), torch.zeros(1, 1, 2, 2, requires_grad=True)
    layer(x, reference).sum().backward()
    expected = torch.zeros(1, 1, 4, 4)
    expected[:, :, 1:3, 1:3] = 1
    assert x.grad is not None and torch.equal(x.grad, expected) and reference.grad is None


@pytest.mark.parametrize(
    ("text", "shape", "expected"),
    [
        ("shape { dim: 0 dim: -1 }", (2, 3, 4), (2, 12)),
        ("shape { dim: -1 }", (2, 3, 4), (24,)),
        ("shape { dim: 2 dim: 2 } axis: 1", (3, 4), (3, 2, 2)),
        ("shape { dim: 0 dim: 2 dim: -1 } axis: 1", (3, 5, 4), (3, 5, 2, 2)),
        ("shape { dim: 1 } axis: -1", (3, 4), (3, 4, 1)),
        ("shape { dim: 2 dim: 2 } axis: -2", (3, 4), (3, 2, 2)),
        ("shape { dim: 1 } axis: 1 num_axes: 0", (3, 4), (3, 1, 4)),
        ("shape { dim: 6 } axis: 0 num_axes: 2", (2, 3, 4), (6, 4)),
        ("shape {} axis: 1 num_axes: 1", (2, 1, 4), (2, 4)),
    ],
)
def test_reshape(text: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    x = seeded(*shape)
    layer = make_layer(f'type: "Reshape" reshape_param {{ {text} }}', shape)
    assert layer(x).shape == expected == shape_on_meta(layer, shape)
    assert torch.equal(layer(x).flatten(), x.flatten())


@given(shape=SHAPE, start=st.integers(0, 4), end=st.integers(-1, 4))
@settings(max_examples=40, deadline=None)
def test_flatten(shape: list[int], start: int, end: int) -> None:
    start, end = min(start, len(shape) - 1), min(end, len(shape) - 1)
    last = end % len(shape)
    layer = make_layer(f'type: "Flatten" flatten_param {{ axis: {start} end_axis: {end} }}', shape)
    x = seeded(*shape)
    if start > last + 1:
        with pytest.raises(LayerError, match="lies after"):
            layer(x)
        return
    merged = int(np.prod(shape[start : last + 1]))
    assert layer(x).shape == (*shape[:start], merged, *shape[last + 1 :])
    assert torch.equal(layer(x).flatten(), x.flatten())


@given(shape=SHAPE, place=st.floats(0, 0.99), tiles=st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_tile(shape: list[int], place: float, tiles: int) -> None:
    axis = int(place * len(shape))
    layer = make_layer(f'type: "Tile" tile_param {{ axis: {axis} tiles: {tiles} }}', shape)
    x = seeded(*shape)
    np.testing.assert_array_equal(layer(x).numpy(), np.concatenate([x.numpy()] * tiles, axis))


@given(shape=SHAPE, data=st.data())
@settings(max_examples=100, deadline=None)
def test_reshape_of_any_axes(shape: list[int], data: st.DataObject) -> None:
    axes = len(shape)
    start = data.draw(st.integers(0, axes))
    count = data.draw(st.integers(0, axes - start))
    replaced = shape[start : start + count]
    dims = data.draw(st.permutations([*replaced, *data.draw(st.lists(st.just(1), max_size=2))]))
    written = list(dims)
    for place, extent in enumerate(dims):
        if start + place < axes and shape[start + place] == extent and data.draw(st.booleans()):
            written[place] = 0  # copied from the bottom's axis at that place
    if dims and data.draw(st.booleans()):
        written[data.draw(st.integers(0, len(dims) - 1))] = -1
    given_axis = data.draw(st.sampled_from([start, start - axes - 1]))
    given_count = data.draw(st.sampled_from([count, -1])) if start + count == axes else count
    text = " ".join(f"dim: {extent}" for extent in written)
    layer = make_layer(
        f'type: "Reshape" reshape_param {{ axis: {given_axis} num_axes: {given_count} shape {{ {text} }} }}', shape
    )
    x = seeded(*shape)
    expected = (*shape[:start], *dims, *shape[start + count :])
    assert tuple(layer(x).shape) == expected == shape_on_meta(layer, shape)
    assert torch.equal(layer(x).flatten(), x.flatten())


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool])
def test_filter(dtype: torch.dtype) -> None:
    a, b = seeded(5, 2, 3), seeded(5, seed=1)
    layer = make_layer('type: "Filter"', a.shape, b.shape, (5, 1), tops=2)
    assert layer.top_shapes([(5, 2, 3), (5,), (5, 1)]) == [(5, 2, 3), (5,)]
    kept = torch.tensor([1, 0, 2, 0, 0.5]).to(dtype).reshape(5, 1)
    rows = [0, 2] if dtype == torch.int64 else [0, 2, 4]
    for top, bottom in zip(layer(a, b, kept), (a, b), strict=True):
        assert torch.equal(top, bottom[rows])
    assert [top.shape for top in layer(a, b, torch.zeros(5))] == [(0, 2, 3), (0,)]


def test_batch_reindex() -> None:
    layer = make_layer('type: "BatchReindex"', (4, 2), (3,))
    x = seeded(4, 2).requires_grad_()
    y = layer(x, torch.tensor([3.0, 0.9, 3.0]))
    assert torch.equal(y, x[[3, 0, 3]])
    y.sum().backward()
    assert x.grad is not None and x.grad[:, 0].tolist() == [1, 0, 0, 2]
    for index in (4, -1):
        with pytest.raises(LayerError, match=r"outside of 0\.\.3"):
            layer(x, torch.tensor([index]))


def test_split_and_silence() -> None:
    x = seeded(2, 2)
    assert all(top is x for top in make_layer('type: "Split"', (2, 2), tops=3)(x))
    assert make_layer('type: "Split"', (2, 2))(x) is x
    assert make_layer('type: "Silence"', (2, 2), (3,), tops=0)(x, x) == ()


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ('type: "Concat" concat_param { axis: 0 }', [(2, 3), (1, 3)]),
        ('type: "Slice" slice_param { slice_point: 1 }', [(2, 3)]),
        ('type: "Crop" crop_param { axis: 1 offset: 1 }', [(2, 3), (2, 2)]),
        ('type: "Reshape" reshape_param { shape { dim: -1 } }', [(2, 3)]),
        ('type: "Flatten" flatten_param { axis: 0 }', [(2, 3)]),
        ('type: "Tile" tile_param { tiles: 2 }', [(2, 3)]),
    ],
)
def test_gradients(text: str, shapes: list[tuple[int, ...]]) -> None:
    layer = make_layer(text, *shapes, tops=2 if "Slice" in text else 1)
    torch.autograd.gradcheck(layer, tuple(seeded(*shape).requires_grad_() for shape in shapes))


@pytest.mark.parametrize(
    ("text", "shapes", "message"),
    [
        ('type: "Concat"', [(2, 3), (3, 3)], "may differ along axis 1 only"),
        ('type: "Concat"', [(2, 3), (2, 3, 1)], "may differ along axis 1 only"),
        ('type: "Concat" concat_param { axis: 1 concat_dim: 1 }', [(2, 3)], "both given"),
        ('type: "Concat" concat_param { concat_dim: 7 }', [(2, 3)], "concat_dim 7 is outside"),
        ('type: "Slice" slice_param { axis: 1 slice_dim: 1 }', [(2, 4)], "both given"),
        ('type: "Slice"', [(2, 3)], "evenly into 2"),
        ('type: "Slice" slice_param { slice_point: [1, 2] }', [(2, 3)], "one fewer"),
        ('type: "Slice" slice_param { slice_point: 0 }', [(2, 3)], "grow strictly"),
        ('type: "Slice" slice_param { slice_point: 4 }', [(2, 3)], "grow strictly"),
        ('type: "Crop" crop_param { offset: [1, 1, 1] }', [(1, 1, 4, 4), (1, 1, 2, 2)], "3 offsets for 2"),
        ('type: "Crop" crop_param { offset: 3 }', [(1, 1, 4, 4), (1, 1, 2, 2)], "offset 3 . size 2 exceeds 4"),
        ('type: "Crop"', [(1, 1, 4, 4), (4, 4)], "all axes of bottom 0"),
        ('type: "Crop" crop_param { axis: 4 }', [(1, 1, 4, 4), (1, 1, 4, 4)], "axis 4 is outside"),
        ('type: "Reshape" reshape_param { shape { dim: 5 } }', [(2, 3)], "can't reshape"),
        ('type: "Reshape" reshape_param { shape { dim: 1 } axis: -2 }', [(3, 4)], "can't reshape"),
        ('type: "Reshape" reshape_param { shape { dim: -1 dim: -1 } }', [(2, 3)], "-1 .inferred. once"),
        ('type: "Reshape" reshape_param { shape { dim: -2 } }', [(2, 3)], "nothing below"),
        ('type: "Reshape" reshape_param { shape { dim: 4 dim: -1 } }', [(2, 3)], "can't infer"),
        ('type: "Reshape" reshape_param { shape { dim: 6 dim: 1 dim: 0 } }', [(2, 3)], "no axis 2 to copy"),
        ('type: "Reshape" reshape_param { shape { dim: 6 } axis: 3 }', [(2, 3)], "axis 3 is outside"),
        ('type: "Reshape" reshape_param { shape { dim: 6 } axis: 1 num_axes: 2 }', [(2, 3)], "exceeds"),
        ('type: "Reshape" reshape_param { shape { dim: 6 } num_axes: -2 }', [(2, 3)], "num_axes -2"),
        ('type: "Flatten" flatten_param { end_axis: 3 }', [(2, 3)], "end_axis 3 is outside"),
        ('type: "Tile"', [(2, 3)], "tiles must be given"),
        ('type: "BatchReindex"', [(2, 3), (2, 1)], "index of one axis"),
        ('type: "Filter"', [(2, 3), (2,)], "one top for each"),
    ],
)
def test_refusals(text: str, shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        make_layer(text, *shapes, tops=2)(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize("shapes", [[(3, 2), (4,)], [(3, 2), (3, 2)], [(3, 2), ()]])
def test_refused_selectors(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(LayerError, match="selector"):
        make_layer('type: "Filter"', *shapes)
