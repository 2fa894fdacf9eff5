"""Whether the well-known nets of Caffe's forks load from their public definitions, and compute.

    python -m benchmarks.named_nets FOLDER [NAME ...] [--side 128] [--opencv]

FOLDER holds a folder for each repository, called owner+name, as for `benchmarks.dialects`. Each net is made in a
process of its own, given small random weights and an image at most `--side` pixels long where it takes one (else of its
declared size), and all its outputs are computed. FlowNet's definition is a template: its $NAMES get sizes for such
images. With `--opencv` every blob that OpenCV's dnn module gives is compared with ours, from the same weights.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.dialects import Limits, Outcome, outcomes

NETS = {
    "SSD300": "intel+caffe/models/intel_optimized_models/ssd/VGGNet/VOC0712/SSD_300x300/deploy.prototxt",
    "Faster R-CNN (VGG16)": "rbgirshick+py-faster-rcnn/models/pascal_voc/VGG16/faster_rcnn_end2end/test.prototxt",
    "R-FCN": "YuwenXiong+py-R-FCN/models/pascal_voc/ResNet-50/rfcn_end2end/test_agnostic.prototxt",
    "SegNet": "alexgkendall+SegNet-Tutorial/Example_Models/segnet_model_driving_webdemo.prototxt",
    "PSPNet": "hszhao+PSPNet/evaluation/prototxt/pspnet101_VOC2012_473.prototxt",
    "DeepLab-v2": "zbxzc35+deeplab_v2_python/voc12/deeplab_v2_vgg16/config/test_val.prototxt",
    "ENet": "TimoSaemann+ENet/prototxts/enet_deploy_final.prototxt",
    "MobileNet-SSD": "chuanqi305+MobileNet-SSD/deploy.prototxt",
    "ShuffleNet": "farmingyard+ShuffleNet/shufflenet_1x_g3_deploy.prototxt",
    "SENet": "hujie-frank+SENet/models/SE-ResNet-50.prototxt",
    "YOLOv3": "eric612+MobileNet-YOLO/models/darknet_yolov3/yolov3.prototxt",
    "HED": "s9xie+hed/examples/hed/deploy.prototxt",
    "OpenPose": "CMU-Perceptual-Computing-Lab+openpose/models/pose/body_25/pose_deploy.prototxt",
    "FlowNetC": "liruoteng+FlowNet/models/flownet/model_corr/deploy.tpl.prototxt",
}
"""The nets and their files. FlowNet2-C's own definition is in no repository, only in its archive of models: FlowNetC is
its first version, of the same layers."""

TEMPLATE = {"ADAPTED": (128, 64), "TARGET": (128, 64), "SCALE": (1, 1)}
"""What the $NAMES of a template stand for: _WIDTH and _HEIGHT."""


def filled(text: str) -> str:
    """A template with its $NAMES filled in; other text as it stands."""
    for name, (width, height) in TEMPLATE.items():
        text = text.replace(f"${name}_WIDTH", str(width)).replace(f"${name}_HEIGHT", str(height))
    return text


def found(folder: Path, names: list[str], scratch: Path) -> Iterator[tuple[str, Outcome]]:
    """The nets whose files are there, templates filled in."""
    for name in names or NETS:
        path = folder / NETS[name]
        if not path.is_file():
            print(f"{name}: {path} is missing", file=sys.stderr)
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        copy = scratch / f"{re.sub('[^A-Za-z0-9]+', '-', name)}.prototxt"
        copy.write_text(filled(text), encoding="utf-8")
        yield name, Outcome(name, str(copy), deploy=True)


def beside_opencv(net: Outcome, side: int) -> str:
    """How far the blobs of a net are from OpenCV's, in a few words; weights keep the values' size."""
    import torch

    from benchmarks.dialects import inputs_of, made_net, randomise
    from fcnproto.errors import Error
    from fcnproto.parity import compare, opencv_reference
    from fcnproto.schema.text import read_net

    made = made_net(read_net(Path(net.file), quiet=True))
    randomise(made)
    inputs = {name: value.numpy() for name, value in inputs_of(made, 1, side).items()}
    try:
        with torch.no_grad():
            report = compare(made, opencv_reference(made, inputs), tolerance=1e-4)
    except Error as error:
        return str(error)[:120]
    found = [entry.measures.max_rel for entry in report.entries if entry.measures is not None]
    worst = f"{len(found)} blobs within {max(found):.1e} of their largest value"
    return worst if report.agrees else f"departs: {report.departure.entry.name}" if report.departure else worst


def main(arguments: list[str] | None = None) -> int:
    """Print a line of Markdown for each net; returns 1 if one of those found didn't compute."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.named_nets", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(NETS)}; all by default")
    parser.add_argument("--side", type=int, default=128, help="pixels of the longer side of images")
    parser.add_argument("--seconds", type=int, default=300, help="processor time for each")
    parser.add_argument("--opencv", action="store_true", help="compare with OpenCV, too (Python package opencv-python)")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(NETS))
    if unknown:
        parser.error(f"{', '.join(unknown)}: not among {', '.join(NETS)}")
    limits = Limits(options.seconds, side=options.side)
    with tempfile.TemporaryDirectory() as scratch:
        nets = [net for _, net in found(options.folder, options.names, Path(scratch))]
        done = list(outcomes(nets, limits, jobs=1))
        beside = [beside_opencv(net, options.side) if options.opencv else "-" for net in done]
    print("| net | loads | computes | what stops it | beside OpenCV |\n|---|---|---|---|---|")
    for net, said in zip(done, beside, strict=True):
        marks = ["yes" if fact else "no" for fact in (net.loads, net.computes)]
        print(f"| {net.repository} | {' | '.join(marks)} | {'; '.join(net.stops) or '-'} | {said} |")
    return 0 if all(net.computes for net in done) else 1


if __name__ == "__main__":
    sys.exit(main())
