"""The benchmark of public nets: what it counts as loading, known and computing, and its limits."""

from __future__ import annotations

from pathlib import Path

from benchmarks.dialects import Limits, find_nets, main, outcomes

GOOD = """
layer { name: "rois" type: "Input" top: "data" top: "rois"
  input_param { shape { dim: 4 dim: 3 dim: 8 dim: 8 } shape { dim: 2 dim: 5 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 2 kernel_size: 3 } }
layer { name: "roi" type: "ROIPooling" bottom: "conv" bottom: "rois" top: "roi"
  roi_pooling_param { pooled_h: 2 pooled_w: 2 spatial_scale: 0.0625 } }
"""
UNKNOWN = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }
layer { name: "new" type: "NobodyKnows" bottom: "data" top: "new" }
"""
TRAIN = """
layer { name: "data" type: "DummyData" top: "data" include { phase: TRAIN } dummy_data_param { shape { dim: 2 } } }
layer { name: "relu" type: "ReLU" bottom: "data" top: "relu" }
"""


def test_the_shares_and_what_stops_nets(tmp_path: Path, capsys) -> None:
    files = {"a/good.prototxt": GOOD, "a/copy.prototxt": GOOD + "# the same", "a/unknown.prototxt": UNKNOWN}
    files |= {"b/train.prototxt": TRAIN, "b/broken.prototxt": "layer { name: ", "b/solver.prototxt": "base_lr: 1"}
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert main([str(tmp_path), "--jobs", "1"]) == 0
    printed = capsys.readouterr()
    assert "4 nets of 2 repositories, 2 of them deploy nets." in printed.out
    assert "| loads | 75 % | 75 % |" in printed.out
    assert "| every layer known | 50 % | 50 % |" in printed.out
    assert "| deploy nets: compute | 50 % | 50 % |" in printed.out
    assert "| type NobodyKnows | 1 | 1 |" in printed.out
    assert "broken.prototxt: PrototxtError" in printed.err


def test_what_takes_too_much_is_stopped(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(GOOD)
    (found,) = outcomes(find_nets(tmp_path), Limits(seconds=0, memory=8 << 30), 1)
    assert not found.loads
    assert found.stops == ["out of time"]
