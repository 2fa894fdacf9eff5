"""Input, DummyData, Parameter and MemoryData."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_layers import assert_resumes, batches, make_source

import fcnproto
from fcnproto.errors import DataError, FcnprotoWarning, LayerError
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

MEMORY = 'type: "MemoryData" top: "d" top: "l" memory_data_param { batch_size: 2 channels: 1 height: 2 width: 3 }'


def test_input_shapes() -> None:
    one = make_source('type: "Input" top: "a" top: "b" input_param { shape { dim: 2 dim: 5 } }')
    assert one.top_shapes([]) == [(2, 5), (2, 5)]
    assert make_source('type: "Input" top: "a" top: "b"').top_shapes([]) == [None, None]
    with pytest.raises(LayerError, match="2 shapes for 3 tops"):
        make_source('type: "Input" top: "a" top: "b" top: "c" input_param { shape { dim: 1 } shape { dim: 2 } }')


def test_input_has_no_data_of_its_own() -> None:
    with pytest.raises(LayerError, match="'a'"):
        make_source('type: "Input" top: "a"')()


def test_dummy_data_shapes_and_fillers() -> None:
    layer = make_source(
        'type: "DummyData" top: "a" top: "b" dummy_data_param { num: 2 num: 3 channels: 4 height: 1 width: 5 '
        'data_filler { type: "gaussian" std: 2 } data_filler { value: 7 } }'
    )
    assert layer.top_shapes([]) == [(2, 4, 1, 5), (3, 4, 1, 5)]
    torch.manual_seed(3)
    first, second = batches(layer, 2)
    assert (first[1] == 7).all() and (second[1] == 7).all()
    assert not (first[0] == second[0]).any()
    torch.manual_seed(3)
    np.testing.assert_array_equal(batches(layer, 1)[0][0], first[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("shape { dim: 1 } num: 1 channels: 1 height: 1 width: 1", "not both"),
        ("shape { dim: 1 } shape { dim: 1 } shape { dim: 1 }", "3 shapes for 2 tops"),
        ("shape { dim: 1 } data_filler {} data_filler {} data_filler {}", "3 data_fillers"),
        ("", "0 num"),
    ],
)
def test_dummy_data_refuses(settings: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        make_source(f'type: "DummyData" top: "a" top: "b" dummy_data_param {{ {settings} }}')


@pytest.mark.parametrize("filler", ['type: "gausian"', 'type: "xavier" sparse: 2'])
def test_dummy_data_refuses_fillers_before_any_call(filler: str) -> None:
    with pytest.raises(LayerError, match=r"layer 'source' \(DummyData\): .*(did you mean 'gaussian'|sparse)"):
        make_source(f'type: "DummyData" top: "a" dummy_data_param {{ shape {{ dim: 2 }} data_filler {{ {filler} }} }}')


def test_memory_data_goes_round() -> None:
    layer = make_source(MEMORY)
    assert layer.top_shapes([]) == [(2, 1, 2, 3), (2, 1, 1, 1)]
    with pytest.raises(DataError, match="set_input_arrays"):
        layer()
    data = np.arange(24, dtype=np.float32).reshape(4, 1, 2, 3)
    layer.set_input_arrays(data, [4, 3, 2, 1])
    rounds = batches(layer, 3)
    np.testing.assert_array_equal(rounds[0][0], data[:2])
    np.testing.assert_array_equal(rounds[1][1].ravel(), [2, 1])
    np.testing.assert_array_equal(rounds[2][0], data[:2])


def test_memory_data_resumes() -> None:
    def make() -> object:
        layer = make_source(MEMORY)
        layer.set_input_arrays(np.random.default_rng(0).random((6, 1, 2, 3)), np.arange(6))
        return layer

    assert_resumes(make, before=2)


@pytest.mark.parametrize(
    ("data", "labels", "message"),
    [
        ((4, 1, 3, 2), (4,), "expected \\(n, 1, 2, 3\\)"),
        ((3, 1, 2, 3), (3,), "multiple of batch_size 2"),
        ((4, 1, 2, 3), (3,), "labels have shape"),
        ((4, 1, 2, 3), (4, 1), "labels have shape"),
        ((0, 1, 2, 3), (0,), "0 rows"),
    ],
)
def test_memory_data_refuses_arrays(data: tuple[int, ...], labels: tuple[int, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_source(MEMORY).set_input_arrays(np.zeros(data), np.zeros(labels))


def test_memory_data_needs_sizes() -> None:
    with pytest.raises(LayerError, match="channels, height, width above 0"):
        make_source('type: "MemoryData" top: "d" top: "l" memory_data_param { batch_size: 2 }')


@pytest.mark.parametrize("rows", ["abc", None, [[1], [1, 2]], np.array(["a"])])
def test_memory_data_refuses_what_is_no_array(rows: object) -> None:
    for data, labels in ((rows, np.zeros(2)), (np.zeros((2, 1, 2, 3)), rows)):
        with pytest.raises(DataError, match="must be an array of numbers"):
            make_source(MEMORY).set_input_arrays(data, labels)


def test_memory_data_takes_any_array() -> None:
    layer = make_source(MEMORY)
    data = np.arange(12, dtype=">u2").reshape(2, 1, 2, 3)[:, :, ::-1]
    layer.set_input_arrays(data, torch.arange(2, dtype=torch.uint8))
    np.testing.assert_array_equal(layer()[0], data)
    rows = torch.zeros(2, 1, 2, 3)
    layer.set_input_arrays(rows, [1, 2])
    rows += 1  # referenced, not copied
    assert (layer()[0] == 1).all()


def test_memory_data_says_that_it_does_not_transform() -> None:
    net = parse(f'layer {{ name: "m" {MEMORY} transform_param {{ scale: 2 }} }}', caffe_pb2.NetParameter)
    with pytest.warns(FcnprotoWarning, match=r"layer 'm' \(MemoryData\): transform_param has no effect"):
        fcnproto.load(net)
