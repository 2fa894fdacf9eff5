"""A slim SSD and a database of drawn objects with their boxes, for tests of training from SSD's own files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from fcnproto.data.writing import new_database
from fcnproto.scenes.rendering import photograph
from fcnproto.scenes.scenes import CLASSES, add_object, generator, random_light
from fcnproto.scenes.textures import texture
from fcnproto.schema import caffe_pb2

SIDE = 96
"""Of the images."""


def draw(seed: int) -> tuple[np.ndarray, list[tuple[int, list[float]]]]:
    """An image (96, 96, 3), RGB, with one or two objects, and each one's label and box in fractions of it."""
    rng = generator((7, seed))
    canvas, light, objects = texture(rng, SIDE, SIDE, calm=True), random_light(rng), []
    for x in rng.permutation([28.0, 68.0])[: int(rng.integers(1, 3))]:
        label = np.zeros((SIDE, SIDE), np.uint8)
        index = add_object(rng, canvas, label, x, rng.uniform(30, 66), rng.uniform(14, 24), light)
        rows, columns = np.nonzero(label)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        objects.append((index, [float(edge) / SIDE for edge in box]))
    return photograph(rng, canvas), objects


def write_database(path: Path, first: int, count: int) -> None:
    """An LMDB of AnnotatedDatum with the drawn images `first` to `first + count - 1`."""
    with new_database(str(path)) as writer:
        for seed in range(first, first + count):
            image, objects = draw(seed)
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            record = caffe_pb2.AnnotatedDatum(type=caffe_pb2.AnnotatedDatum.BBOX)
            record.datum.CopyFrom(caffe_pb2.Datum(encoded=True, data=buffer.getvalue(), height=SIDE, width=SIDE))
            for label, (left, top, right, bottom) in objects:
                note = record.annotation_group.add(group_label=label).annotation.add()
                note.bbox.CopyFrom(caffe_pb2.NormalizedBBox(xmin=left, ymin=top, xmax=right, ymax=bottom))
            writer.put(b"%06d" % seed, record.SerializeToString())


_DATA = """
layer {{ name: "data" type: "AnnotatedData" top: "data" top: "label" include {{ phase: {phase} }}
  transform_param {{ mean_value: 112 mean_value: 112 mean_value: 112 scale: 0.02
    resize_param {{ height: 96 width: 96 interp_mode: LINEAR {modes} }} {random} }}
  data_param {{ source: "{phase}_lmdb" batch_size: 8 backend: LMDB }}
  annotated_data_param {{ {samplers} label_map_file: "labelmap.prototxt" }} }}
"""
_RANDOM = """emit_constraint { emit_type: CENTER } mirror: true
    distort_param { brightness_prob: 0.5 brightness_delta: 32 contrast_prob: 0.5 contrast_lower: 0.5 contrast_upper: 1.5
      hue_prob: 0.5 hue_delta: 18 saturation_prob: 0.5 saturation_lower: 0.5 saturation_upper: 1.5 }
    expand_param { prob: 0.3 max_expand_ratio: 1.5 }"""
_SAMPLERS = """batch_sampler { max_sample: 1 max_trials: 1 }
    batch_sampler { sampler { min_scale: 0.5 max_scale: 1 min_aspect_ratio: 0.5 max_aspect_ratio: 2 }
      sample_constraint { min_jaccard_overlap: 0.3 } max_sample: 1 max_trials: 50 }"""
_CONVOLUTION = """
layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}"
  convolution_param {{ num_output: {outputs} kernel_size: 3 pad: 1 stride: {stride} weight_filler {{ type: "{filler}" }} }} }}
"""
_HEAD = """
layer {{ name: "{name}_perm" type: "Permute" bottom: "{name}" top: "{name}_perm" permute_param {{ order: 0 order: 2 order: 3 order: 1 }} }}
layer {{ name: "{name}_flat" type: "Flatten" bottom: "{name}_perm" top: "{name}_flat" }}
"""
_END = """
layer {{ name: "mbox_loss" type: "MultiBoxLoss" bottom: "loc" bottom: "conf" bottom: "prior" bottom: "label" top: "mbox_loss"
  include {{ phase: TRAIN }} propagate_down: true propagate_down: true propagate_down: false propagate_down: false
  loss_param {{ normalization: VALID }}
  multibox_loss_param {{ num_classes: {classes} overlap_threshold: 0.5 neg_overlap: 0.5 code_type: CENTER_SIZE }} }}
layer {{ name: "rows" type: "Reshape" bottom: "conf" top: "rows" include {{ phase: TEST }}
  reshape_param {{ shape {{ dim: 0 dim: -1 dim: {classes} }} }} }}
layer {{ name: "prob" type: "Softmax" bottom: "rows" top: "prob" include {{ phase: TEST }} softmax_param {{ axis: 2 }} }}
layer {{ name: "flat" type: "Flatten" bottom: "prob" top: "flat" include {{ phase: TEST }} }}
layer {{ name: "found" type: "DetectionOutput" bottom: "loc" bottom: "flat" bottom: "prior" top: "found" include {{ phase: TEST }}
  detection_output_param {{ num_classes: {classes} nms_param {{ nms_threshold: 0.45 top_k: 100 }} keep_top_k: 50
    code_type: CENTER_SIZE confidence_threshold: 0.01 }} }}
layer {{ name: "eval" type: "DetectionEvaluate" bottom: "found" bottom: "label" top: "detection_eval" include {{ phase: TEST }}
  detection_evaluate_param {{ num_classes: {classes} evaluate_difficult_gt: false }} }}
"""


def net(width: int = 16) -> str:
    """The prototxt of a slim SSD with priors on maps of 12 x 12 and 6 x 6."""
    classes = len(CLASSES)
    modes = "interp_mode: AREA interp_mode: NEAREST interp_mode: CUBIC interp_mode: LANCZOS4"
    parts = [
        'name: "slim_ssd"',
        _DATA.format(phase="TRAIN", modes=modes, random=_RANDOM, samplers=_SAMPLERS),
        _DATA.format(phase="TEST", modes="", random="", samplers=""),
    ]
    bottom = "data"
    for number, factor in enumerate((1, 2, 2, 4), 1):
        name = f"conv{number}"
        parts.append(_CONVOLUTION.format(name=name, bottom=bottom, outputs=width * factor, stride=2, filler="msra"))
        parts.append(f'layer {{ name: "relu{number}" type: "ReLU" bottom: "{name}" top: "{name}" }}')
        bottom = name
    heads = (("conv3", "min_size: 24 max_size: 34"), ("conv4", "min_size: 34 max_size: 48"))
    for source, sizes in heads:
        for kind, outputs in (("loc", 4 * 4), ("conf", 4 * classes)):
            name = f"{source}_{kind}"
            parts.append(_CONVOLUTION.format(name=name, bottom=source, outputs=outputs, stride=1, filler="xavier"))
            parts.append(_HEAD.format(name=name))
        settings = f"{sizes} aspect_ratio: 2 flip: true variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2"
        parts.append(
            f'layer {{ name: "{source}_prior" type: "PriorBox" bottom: "{source}" bottom: "data" top: "{source}_prior" '
            f"prior_box_param {{ {settings} }} }}"
        )
    for kind, suffix, axis in (("loc", "_loc_flat", 1), ("conf", "_conf_flat", 1), ("prior", "_prior", 2)):
        bottoms = " ".join(f'bottom: "{source}{suffix}"' for source, _ in heads)
        parts.append(
            f'layer {{ name: "{kind}" type: "Concat" {bottoms} top: "{kind}" concat_param {{ axis: {axis} }} }}'
        )
    return "\n".join([*parts, _END.format(classes=classes)])


def solver(iterations: int, tests: int, every: int) -> str:
    """The prototxt of SSD's solver, that tests `tests` batches in every `every` iterations."""
    return (
        f'net: "net.prototxt" test_iter: {tests} test_interval: {every} test_initialization: false base_lr: 0.01 '
        f'lr_policy: "multistep" gamma: 0.1 stepvalue: {iterations * 2 // 3} momentum: 0.9 weight_decay: 0.0005 '
        f"max_iter: {iterations} display: {max(every // 5, 1)} average_loss: 10 solver_mode: CPU snapshot_after_train: false "
        f'random_seed: 3 type: "SGD" eval_type: "detection" ap_version: "11point" iter_size: 1 snapshot_prefix: "slim"'
    )


def write_files(folder: Path, *, train: int, test: int, iterations: int, every: int, width: int = 16) -> Path:
    """Net, solver and databases of so many images; returns the solver's path."""
    write_database(folder / "TRAIN_lmdb", 0, train)
    write_database(folder / "TEST_lmdb", 100_000, test)
    (folder / "net.prototxt").write_text(net(width))
    (folder / "solver.prototxt").write_text(solver(iterations, test // 8, every))
    return folder / "solver.prototxt"
