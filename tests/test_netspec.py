"""The builder: where settings go, how layers are named and ordered, what is refused."""

import pickle
import subprocess
import sys

import pytest
from google.protobuf import text_format

from fcnproto import GraphError
from fcnproto.netspec import NetSpec, SpecNameError, layers, params, to_proto
from fcnproto.schema import caffe_pb2


def single(top) -> caffe_pb2.LayerParameter:
    """The last layer of the net that computes `top`, without names, bottoms and tops."""
    layer = to_proto(top).layer[-1]
    for name in ("name", "bottom", "top"):
        layer.ClearField(name)
    return layer


def layer(text: str) -> caffe_pb2.LayerParameter:
    return text_format.Parse(text, caffe_pb2.LayerParameter())


@pytest.fixture
def data():
    return layers.Input(shape={"dim": [1, 3, 8, 8]})


def test_a_small_net() -> None:
    net = NetSpec()
    net.data, net.label = layers.MemoryData(ntop=2, batch_size=4, channels=1, height=2, width=2)
    net.ip = layers.InnerProduct(net.data, num_output=3, param=[{"lr_mult": 1}, {"lr_mult": 2, "decay_mult": 0}])
    net.act = layers.ReLU(net.ip, in_place=True)
    net.loss = layers.SoftmaxWithLoss(net.act, net.label)
    expected = """
    layer { name: "data" type: "MemoryData" top: "data" top: "label"
            memory_data_param { batch_size: 4 channels: 1 height: 2 width: 2 } }
    layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 3 }
            param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 } }
    layer { name: "act" type: "ReLU" bottom: "ip" top: "ip" }
    layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
    """
    assert net.to_proto() == text_format.Parse(expected, caffe_pb2.NetParameter())


def test_settings_go_to_the_types_message_or_to_the_layer(data) -> None:
    assert single(layers.Convolution(data, kernel_size=3, loss_weight=2, phase="TEST")) == layer(
        'type: "Convolution" convolution_param { kernel_size: 3 } loss_weight: 2 phase: TEST'
    )
    assert single(layers.Data(source="db", transform_param={"crop_size": 5}, include={"phase": 0})) == layer(
        'type: "Data" data_param { source: "db" } transform_param { crop_size: 5 } include { phase: TRAIN }'
    )
    assert single(layers.Eltwise(data, data, propagate_down=[True, False], coeff=[1, -1])) == layer(
        'type: "Eltwise" propagate_down: true propagate_down: false eltwise_param { coeff: 1 coeff: -1 }'
    )


@pytest.mark.parametrize(
    ("type_name", "settings", "expected"),
    [
        (
            "Deconvolution",
            {"num_output": 2, "bias_term": False},
            "convolution_param { num_output: 2 bias_term: false }",
        ),
        ("Deconvolution", {"convolution_param": {"num_output": 2}}, "convolution_param { num_output: 2 }"),
        (
            "SoftmaxWithLoss",
            {"axis": 2, "ignore_label": 255},
            "softmax_param { axis: 2 } loss_param { ignore_label: 255 }",
        ),
        ("SoftmaxWithLoss", {"loss_param": {"normalize": False}}, "loss_param { normalize: false }"),
        (
            "HingeLoss",
            {"norm": "L2", "normalize": True},
            "hinge_loss_param { norm: L2 } loss_param { normalize: true }",
        ),
        ("LSTM", {"num_output": 4}, "recurrent_param { num_output: 4 }"),
        ("LRN", {"local_size": 3}, "lrn_param { local_size: 3 }"),
        ("HDF5Data", {"batch_size": 3}, "hdf5_data_param { batch_size: 3 }"),
    ],
)
def test_types_that_share_messages(type_name: str, settings: dict, expected: str) -> None:
    assert single(getattr(layers, type_name)(**settings)) == layer(f'type: "{type_name}" {expected}')


def test_values(data) -> None:
    scalar_for_list = single(layers.Convolution(data, kernel_size=3, param={"lr_mult": 0}))
    assert scalar_for_list == layer('type: "Convolution" convolution_param { kernel_size: 3 } param { lr_mult: 0 }')
    nested = single(
        layers.Convolution(data, kernel_size=(3, 5), weight_filler={"type": "xavier", "variance_norm": "AVERAGE"})
    )
    assert nested == layer(
        'type: "Convolution" convolution_param { kernel_size: 3 kernel_size: 5'
        ' weight_filler { type: "xavier" variance_norm: AVERAGE } }'
    )
    message = single(layers.Convolution(data, convolution_param=caffe_pb2.ConvolutionParameter(num_output=7)))
    assert message.convolution_param.num_output == 7
    assert not single(layers.Convolution(data, kernel_size=[])).convolution_param.kernel_size
    assert single(layers.Dropout(data, dropout_param={})).HasField("dropout_param")


def test_enums(data) -> None:
    assert (params.Pooling.MAX, params.Pooling.AVE, params.Eltwise.SUM, params.Loss.VALID) == (0, 1, 1, 1)
    by_number, by_name = (single(layers.Pooling(data, pool=pool)) for pool in (params.Pooling.STOCHASTIC, "STOCHASTIC"))
    assert by_number == by_name == layer('type: "Pooling" pooling_param { pool: STOCHASTIC }')


def test_automatic_names_step_around_given_ones(data) -> None:
    net = NetSpec()
    net.ReLU1 = layers.Sigmoid(layers.ReLU(layers.ReLU(data)))
    first, second = layers.Slice(net.ReLU1, ntop=2)
    net.joined = layers.Concat(first, second, name="join")
    names = [(entry.name, list(entry.bottom), list(entry.top)) for entry in net.to_proto().layer]
    assert names == [
        ("Input1", [], ["Input1"]),
        ("ReLU2", ["Input1"], ["ReLU2"]),
        ("ReLU3", ["ReLU2"], ["ReLU3"]),
        ("ReLU1", ["ReLU3"], ["ReLU1"]),
        ("Slice1", ["ReLU1"], ["Slice1", "Slice2"]),
        ("join", ["Slice1", "Slice2"], ["joined"]),
    ]


def test_names_of_layers_and_tops_apart(data) -> None:
    net = NetSpec()
    net["conv2d/a"] = layers.Convolution(data, name="first")
    net.sink = layers.Silence(net["conv2d/a"], ntop=0)
    proto = net.to_proto()
    assert [(entry.name, list(entry.top)) for entry in proto.layer[1:]] == [("first", ["conv2d/a"]), ("sink", [])]
    assert to_proto(layers.Silence(data, ntop=0, name="gone")).layer[1].name == "gone"
    assert "sink" in net and list(net) == ["conv2d/a", "sink"]


def test_a_layer_shared_by_two_tops_is_written_once(data) -> None:
    one = layers.ReLU(data)
    proto = to_proto(layers.Eltwise(one, one), layers.TanH(one))
    assert [entry.type for entry in proto.layer] == ["Input", "ReLU", "Eltwise", "TanH"]


def test_long_chains(data) -> None:
    top = data
    for _ in range(3000):
        top = layers.ReLU(top)
    assert len(top.to_proto().layer) == 3001


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda data: layers.ReLU(3), "ReLU: input 0 is of type int; give the tops of other layers"),
        (lambda data: layers.ReLU(layers.Silence(data, ntop=0)), "input 0 is a layer without tops"),
        (lambda data: layers.ReLU(layers.Slice(data, ntop=2)), "input 0 is of type tuple"),
        (lambda data: layers.Convolution(data, num_outptu=3), "'num_outptu'; did you mean \"num_output\""),
        (lambda data: layers.Convolution(data, bottom="data"), "no setting 'bottom'"),
        (
            lambda data: layers.Convolution(data, weight_filler={"tpye": "x"}),
            "FillerParameter has no field 'tpye'; did",
        ),
        (
            lambda data: layers.Convolution(data, weight_filler="xavier"),
            "give a dictionary of FillerParameter's fields",
        ),
        (lambda data: layers.Convolution(data, num_output="many"), "num_output takes uint32 values, not 'many'"),
        (lambda data: layers.Convolution(data, kernel_size=[3, -1]), "kernel_size takes uint32 values, not -1"),
        (lambda data: layers.Pooling(data, pool="MEAN"), "no value 'MEAN'; choose from MAX, AVE, STOCHASTIC"),
        (lambda data: layers.ReLU(in_place=True), "1 tops in place need as many inputs, not 0"),
        (lambda data: params.Pooling.MEAN, "no value 'MEAN'"),
        (lambda data: params.Poolin, 'no PoolinParameter; did you mean "Pooling"'),
        (lambda data: NetSpec().conv1, "the spec has no top 'conv1'"),
        (lambda data: setattr(NetSpec(), "x", 3), "'x' can only name a layer's top, not a value of type int"),
        (lambda data: setattr(NetSpec(), "x", layers.Slice(data, ntop=2)), "not a tuple: name each top by itself"),
    ],
)
def test_refusals(data, build, words: str) -> None:
    with pytest.raises(GraphError) as caught:
        build(data)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_names_are_attribute_errors_too() -> None:
    net = NetSpec()
    assert not hasattr(net, "conv1")
    net.conv1_1 = layers.Input()
    with pytest.raises(SpecNameError, match='did you mean "conv1_1"'):
        net["conv1_2"]


def test_specs_can_be_pickled() -> None:
    net = NetSpec()
    net.data = layers.Input()
    net.out = layers.ReLU(net.data)
    assert pickle.loads(pickle.dumps(net)).to_proto() == net.to_proto()


def test_needs_no_torch() -> None:
    code = "import sys, fcnproto.netspec, fcnproto.zoo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
