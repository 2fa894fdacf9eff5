"""Writes docs/samples: an exported module and two parity reports. Run it as `python docs/make_samples.py`.

The reports compare the slim FCN-8s with a recording of the original Caffe in training: as it is, and with pooling sizes
rounded down, to show how a departure looks.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SAMPLES = HERE / "samples"
sys.path.insert(0, str(HERE.parent / "tests"))

import golden_cases  # noqa: E402

import fcnproto  # noqa: E402
from fcnproto.atomic import atomic_write  # noqa: E402
from fcnproto.drawing import lay_out, layer_params, make_diagram  # noqa: E402
from fcnproto.export import about_inputs, make_source  # noqa: E402
from fcnproto.export.carried import source_head  # noqa: E402
from fcnproto.export.shapes import blob_shapes, input_shapes  # noqa: E402
from fcnproto.export.source import endpoints  # noqa: E402
from fcnproto.inspect.summary import summarise  # noqa: E402
from fcnproto.net import Net  # noqa: E402
from fcnproto.parity import compare, read_recording  # noqa: E402
from fcnproto.parity.page import to_html  # noqa: E402
from fcnproto.schema import caffe_pb2  # noqa: E402
from fcnproto.schema.text import read_net  # noqa: E402

MODEL, CASE = "voc-fcn8s", "voc_fcn8s_train"


def exported_module() -> str:
    """What `fcnproto convert` writes for FCN-8s."""
    path = fcnproto.zoo.path(MODEL, "deploy")
    net = Net(read_net(path), file=path, fill=False).to("meta")
    shapes = blob_shapes(net, input_shapes(net, endpoints(net)[0]))
    made = make_source(net, shapes, "voc_fcn8s.safetensors", title=MODEL, about=about_inputs(net))
    return source_head(net) + made.text


def parity_report(round_down: bool) -> str:
    """A parity report of the slim FCN-8s; with `round_down` of one whose pooling follows another rule than Caffe's."""
    case = golden_cases.load("fcn", CASE)
    param = read_net(case.folder / "net.prototxt")
    if round_down:
        for layer in param.layer:
            if layer.type == "Pooling":
                layer.pooling_param.round_mode = caffe_pb2.PoolingParameter.FLOOR
    phase = case.facts["phase"].lower()
    net = fcnproto.load(param, phase=phase)
    golden_cases.set_params(net, case.keys("param"))
    recording = read_recording(case.folder / "data.npz")
    recording.source = "a recording of BVLC Caffe 1.0 (slim FCN-8s, forward and backward)"
    report = compare(net, recording)
    shapes = {name: value.shape for name, value in recording.inputs.items()}
    diagram = make_diagram(summarise(param, phase=phase, shapes=shapes), layer_params(param, phase), fold=False)
    return to_html(report, diagram, lay_out(diagram, graphviz=False))


def samples() -> dict[str, str]:
    """The files of docs/samples and their texts."""
    return {
        "voc_fcn8s.py": exported_module(),
        "parity-report.html": parity_report(round_down=False),
        "parity-departure.html": parity_report(round_down=True),
    }


if __name__ == "__main__":
    SAMPLES.mkdir(exist_ok=True)
    for name, text in samples().items():
        with atomic_write(SAMPLES / name, "w") as file:
            file.write(text)
