"""AnnotatedData: images with boxes out of a database, and what the transformations do to both."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_layers import assert_resumes, batches, make_source, write_lmdb
from PIL import Image

from fcnproto.data.annotations import Annotations, Window, coverage, meets, sample_window, sample_windows
from fcnproto.data.writing import new_database
from fcnproto.errors import DataError, LayerError
from fcnproto.schema import caffe_pb2, unknown
from fcnproto.schema.text import format_message, parse

pytest.importorskip("lmdb")

HEIGHT, WIDTH = 40, 60
# Rows of label, instance, xmin, ymin, xmax, ymax, difficult in pixels, one list for each image.
OBJECTS = [
    [(1, 0, 6, 8, 30, 20, 0), (2, 0, 30, 20, 54, 36, 1), (1, 1, 0, 0, 12, 10, 0)],
    [],
    [(3, 0, 15, 10, 45, 30, 0)],
]


def image_of(rows: list[tuple[int, ...]]) -> np.ndarray:
    """BGR: black, with each object's box filled by 60 times its label."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for label, _, left, top, right, bottom, _ in rows:
        image[top:bottom, left:right] = 60 * label
    return image


def annotated(rows: list[tuple[int, ...]], encoded: bool = True, typed: bool = True) -> caffe_pb2.AnnotatedDatum:
    """A record, its objects in groups by label in order of appearance."""
    record = caffe_pb2.AnnotatedDatum()
    if typed:
        record.type = caffe_pb2.AnnotatedDatum.BBOX
    buffer = io.BytesIO()
    Image.fromarray(image_of(rows)[..., ::-1]).save(buffer, "PNG")
    record.datum.CopyFrom(caffe_pb2.Datum(encoded=True, data=buffer.getvalue(), label=7))
    if not encoded:
        pixels = image_of(rows).transpose(2, 0, 1)
        record.datum.CopyFrom(caffe_pb2.Datum(channels=3, height=HEIGHT, width=WIDTH, data=pixels.tobytes()))
    for label in dict.fromkeys(row[0] for row in rows):
        group = record.annotation_group.add(group_label=label)
        for _, instance, left, top, right, bottom, difficult in (row for row in rows if row[0] == label):
            note = group.annotation.add(instance_id=instance)
            note.bbox.CopyFrom(
                caffe_pb2.NormalizedBBox(
                    xmin=left / WIDTH,
                    ymin=top / HEIGHT,
                    xmax=right / WIDTH,
                    ymax=bottom / HEIGHT,
                    difficult=bool(difficult),
                )
            )
    return record


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("annotated")
    with new_database(str(folder / "db")) as writer:
        for number, rows in enumerate(OBJECTS):
            writer.put(b"%03d" % number, annotated(rows).SerializeToString())
    return folder


def source(
    folder: Path, transform: str = "", more: str = "", batch: int = 3, train: bool = False, tops: int = 2
) -> Any:
    names = " ".join(f'top: "t{index}"' for index in range(tops))
    return make_source(
        f'type: "AnnotatedData" {names} data_param {{ source: "db" backend: LMDB batch_size: {batch} }} '
        f"transform_param {{ {transform} }} annotated_data_param {{ {more} }}",
        folder,
        train,
    )


def expected_rows() -> list[list[float]]:
    rows = []
    for item, objects in enumerate(OBJECTS):
        for label in dict.fromkeys(row[0] for row in objects):
            for _, instance, left, top, right, bottom, difficult in (row for row in objects if row[0] == label):
                box = [left / WIDTH, top / HEIGHT, right / WIDTH, bottom / HEIGHT]
                rows.append([item, label, instance, *box, difficult])
    return rows


def test_images_and_rows(database: Path) -> None:
    layer = source(database, "mean_value: 1 mean_value: 2 mean_value: 3")
    assert layer.top_shapes([]) == [(3, 3, HEIGHT, WIDTH), (1, 1, None, 8)]
    data, label = batches(layer, 1)[0]
    for number, rows in enumerate(OBJECTS):
        np.testing.assert_array_equal(data[number].transpose(1, 2, 0), image_of(rows) - np.float32([1, 2, 3]))
    np.testing.assert_allclose(label[0, 0], np.float32(expected_rows()), rtol=1e-6)
    assert label.shape == (1, 1, 4, 8)


def test_a_batch_without_objects(database: Path) -> None:
    label = batches(source(database, batch=1), 2)[1][1]
    assert label.tolist() == [[[[-1] * 8]]]


SAMPLER = (
    "batch_sampler { sampler { min_scale: 0.5 max_scale: 0.9 min_aspect_ratio: 0.6 max_aspect_ratio: 1.7 } "
    "max_sample: 1 max_trials: 20 sample_constraint { min_jaccard_overlap: 0.05 } }"
)


def filled(pixels: np.ndarray, row: np.ndarray, margin: int = 1) -> np.ndarray:
    """The pixels (channels, h, w) inside a row's box, without its edges."""
    _, height, width = pixels.shape
    left, top, right, bottom = row[3:7] * [width, height, width, height]
    down = slice(int(np.ceil(top)) + margin, max(int(bottom) - margin, 0))
    return pixels[:, down, int(np.ceil(left)) + margin : max(int(right) - margin, 0)]


@pytest.mark.parametrize(
    ("transform", "more", "size"),
    [
        ("resize_param { height: 50 width: 50 interp_mode: NEAREST interp_mode: LINEAR } mirror: true", "", (50, 50)),
        ("resize_param { height: 80 width: 64 resize_mode: FIT_LARGE_SIZE_AND_PAD pad_value: 7 }", "", (80, 64)),
        ("resize_param { height: 50 width: 100 resize_mode: FIT_LARGE_SIZE_AND_PAD } mirror: true", "", (50, 100)),
        ("expand_param { prob: 1 max_expand_ratio: 3 } resize_param { height: 120 width: 160 }", "", (120, 160)),
        ("crop_h: 32 crop_w: 48 mirror: true", "", (32, 48)),
        (
            "resize_param { height: 100 width: 100 } emit_constraint { emit_type: CENTER }",
            SAMPLER,
            (100, 100),
        ),
    ],
    ids=["warp", "pad high", "pad wide", "expand", "crop", "sample"],
)
def test_boxes_go_along(database: Path, transform: str, more: str, size: tuple[int, int]) -> None:
    """Whatever happens to the image, a box holds the pixels of its object (the last of overlapping ones in front)."""
    layer = source(database, transform, more, train=True)
    assert layer.top_shapes([])[0] == (3, 3, *size) and layer.declared_shapes()[0][2:] == size
    seen = 0
    for data, label in batches(layer, 6):
        assert data.shape == (3, 3, *size)
        for row in label[0, 0]:
            # A sampled window begins at a whole pixel, which is several of the resized image.
            inside = filled(data[int(row[0])], row, margin=9 if more else 1)
            if row[1] == 3 and inside.size:  # the only object of its image, with nothing in front
                seen += 1
                assert (inside == 180).all()
    assert seen >= 3


def test_expansion_fills_with_the_mean(database: Path) -> None:
    means = "mean_value: 200 mean_value: 210 mean_value: 220"
    layer = source(database, f"expand_param {{ prob: 1 max_expand_ratio: 3 }} {means}", batch=1)
    shapes = set()
    for data, _ in batches(layer, 6):
        shapes.add(data.shape)
        field = (data[0] == 0).all(0).sum()
        assert field == data[0, 0].size - HEIGHT * WIDTH
    assert len(shapes) > 3


def test_without_probability_nothing_happens(database: Path) -> None:
    transform = "expand_param { prob: 0 max_expand_ratio: 4 } distort_param { brightness_prob: 0 brightness_delta: 9 }"
    data, _ = batches(source(database, transform), 1)[0]
    np.testing.assert_array_equal(data[2].transpose(1, 2, 0), image_of(OBJECTS[2]))


def test_distorted(database: Path) -> None:
    transform = "distort_param { brightness_prob: 1 brightness_delta: 32 }"
    values = {float(data[2, 0, 20, 30]) for data, _ in batches(source(database, transform), 8)}
    assert len(values) > 3 and all(148 <= value <= 212 for value in values)


def test_labels_where_nothing_says_boxes(tmp_path: Path) -> None:
    with new_database(str(tmp_path / "db")) as writer:
        writer.put(b"0", annotated(OBJECTS[0], typed=False).SerializeToString())
    layer = source(tmp_path)
    assert layer.top_shapes([])[1] == (3,)
    assert batches(layer, 1)[0][1].tolist() == [7, 7, 7]
    assert source(tmp_path, more="anno_type: BBOX").top_shapes([])[1] == (1, 1, None, 8)


def test_raw_pixels(tmp_path: Path) -> None:
    with new_database(str(tmp_path / "db")) as writer:
        writer.put(b"0", annotated(OBJECTS[2], encoded=False).SerializeToString())
    data, label = batches(source(tmp_path, "resize_param { height: 20 width: 30 interp_mode: NEAREST }", batch=1), 1)[0]
    assert data.shape == (1, 3, 20, 30) and (filled(data[0], label[0, 0, 0]) == 180).all()


def test_it_resumes(database: Path) -> None:
    transform = (
        "mirror: true crop_size: 30 distort_param { hue_prob: 0.5 hue_delta: 9 } expand_param { max_expand_ratio: 2 }"
    )
    sampler = "batch_sampler { sampler { min_scale: 0.8 } max_sample: 1 max_trials: 3 }"
    assert_resumes(lambda: source(database, transform, sampler, batch=2, train=True))


def test_noise(database: Path) -> None:
    pytest.importorskip("cv2", reason="noise is OpenCV's")
    data, _ = batches(source(database, "noise_param { inverse: true }"), 1)[0]
    np.testing.assert_array_equal(data[2].transpose(1, 2, 0), 255 - image_of(OBJECTS[2]))
    every = "decolorize: true gauss_blur: true hist_eq: true clahe: true jpeg: 80 erode: true posterize: true"
    salt = "saltpepper: true saltpepper_param { fraction: 0.1 value: 255 } convert_to_hsv: true"
    assert batches(source(database, f"noise_param {{ {every} {salt} }}"), 1)[0][0].shape == (3, 3, HEIGHT, WIDTH)
    with pytest.raises(DataError, match="convert_to_lab can't be computed"):
        batches(source(database, "noise_param { convert_to_lab: true }"), 1)


@pytest.mark.parametrize(
    ("transform", "more", "words"),
    [
        ("resize_param { height: 3 }", "", "resize_param needs a height and a width"),
        ("resize_param { height: 3 width: 3 resize_mode: FIT_SMALL_SIZE }", "", "use batch_size 1"),
        ("expand_param { max_expand_ratio: 1 }", "", "max_expand_ratio must be above 1"),
        ("crop_h: 4", "", "give crop_h and crop_w together"),
        (
            "",
            "batch_sampler { sampler { max_scale: 2 } }",
            "batch_sampler: min_scale 1 and max_scale 2 must be in order",
        ),
        ("distort_param { brightness_delta: -1 }", "", "must not be negative"),
    ],
)
def test_what_is_refused(database: Path, transform: str, more: str, words: str) -> None:
    with pytest.raises(LayerError) as caught:
        source(database, transform, more)
    assert words in str(caught.value)


def test_other_records(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "db", [("0", np.zeros((3, 4, 4), np.uint8), 1)])
    with pytest.raises(DataError, match="not an AnnotatedDatum"):
        batches(source(tmp_path), 1)


BOXES = np.float32([[0.1, 0.1, 0.5, 0.5], [0.4, 0.4, 1, 1]])


def test_coverage() -> None:
    np.testing.assert_allclose(coverage(BOXES, Window(0.3, 0.1, 0.5, 0.5)), [0.5, 0.01 / 0.36], rtol=1e-5)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("", True),
        ("min_jaccard_overlap: 0.49", True),
        ("min_jaccard_overlap: 0.51", False),
        ("max_jaccard_overlap: 0.01", False),
        ("min_sample_coverage: 0.9", True),
        ("min_object_coverage: 0.6", False),
        ("min_jaccard_overlap: 0.49 min_object_coverage: 0.9", True),  # the first one decides alone
    ],
)
def test_constraints(rule: str, expected: bool) -> None:
    constraint = caffe_pb2.SampleConstraint()
    for words in zip(*[iter(rule.split())] * 2, strict=True):
        setattr(constraint, words[0].rstrip(":"), float(words[1]))
    assert meets(Window(0.3, 0.1, 0.5, 0.5), BOXES, constraint) is expected


def test_windows_lie_inside_and_are_counted() -> None:
    sampler = caffe_pb2.BatchSampler(max_sample=2, max_trials=9)
    sampler.sampler.CopyFrom(caffe_pb2.Sampler(min_scale=0.3, min_aspect_ratio=0.5, max_aspect_ratio=2))
    other = caffe_pb2.BatchSampler(use_original_image=False)
    draw = np.random.default_rng(3)
    assert len(sample_windows([sampler, other, sampler], BOXES, draw)) == 4
    for _ in range(50):
        left, top, right, bottom = sample_window(sampler.sampler, draw)
        assert 0 <= left < right <= 1 + 1e-9 and 0 <= top < bottom <= 1 + 1e-9
        assert 0.5 - 1e-9 <= (right - left) / (bottom - top) <= 2 + 1e-9


def test_objects_that_are_mostly_outside_go() -> None:
    objects = Annotations(BOXES, np.zeros((2, 3), np.float32))
    window = Window(0, 0, 0.45, 0.45)
    assert len(objects.within(window, None).boxes) == 2
    centre = caffe_pb2.EmitConstraint(emit_type=caffe_pb2.EmitConstraint.CENTER)
    np.testing.assert_allclose(objects.within(window, centre).boxes, [[0.1 / 0.45, 0.1 / 0.45, 1, 1]], rtol=1e-6)
    part = caffe_pb2.EmitConstraint(emit_type=caffe_pb2.EmitConstraint.MIN_OVERLAP, emit_overlap=0.8)
    assert len(objects.within(window, part).boxes) == 0


def test_units_of_the_small_side() -> None:
    settings = caffe_pb2.ResizeParameter(
        resize_mode=caffe_pb2.ResizeParameter.FIT_SMALL_SIZE, height=100, width=100, height_scale=50, width_scale=40
    )
    objects = Annotations(BOXES[:1], np.zeros((1, 3), np.float32))
    found = objects.extrapolated(20, 40, Window(0, 0, 0.5, 1), settings).boxes
    np.testing.assert_allclose(found, [[0.25, 0.2, 1.25, 1.0]], rtol=1e-6)


SIZES = " ".join(
    f"resize_param {{ prob: {prob} height: {height} width: {width} interp_mode: LINEAR }}"
    for prob, height, width in ((0.5, 32, 48), (0.25, 40, 40), (0.25, 64, 32))
)


def test_labels_of_mobilenet_yolo(database: Path) -> None:
    layer = source(database, "", "yolo_data_type: 1 yolo_data_jitter: 0", batch=3)
    _, label = layer()
    assert label.shape == (3, 1, 300, 5) and layer.top_shapes([])[1] == (3, 1, 300, 5)
    for item, objects in enumerate(OBJECTS):
        rows = [row[1:] for row in expected_rows() if row[0] == item]
        wanted = [[r[0] - 1, (r[2] + r[4]) / 2, (r[3] + r[5]) / 2, r[4] - r[2], r[5] - r[3]] for r in rows]
        assert np.allclose(label[item, 0, : len(objects)].numpy(), np.array(wanted).reshape(-1, 5), atol=1e-6)
        assert not label[item, 0, len(objects) :].any()
    _, easy = source(database, "", "yolo_data_type: 1 yolo_data_jitter: 0 train_diffcult: false", batch=3)()
    assert int((easy[0, 0, :, 3] > 0).sum()) == len(OBJECTS[0]) - 1


def test_a_size_is_drawn_for_ten_batches(database: Path) -> None:
    layer = source(database, SIZES, "yolo_data_type: 1 yolo_data_jitter: 0", batch=1)
    assert layer.top_shapes([])[0] == (1, 3, None, None)
    shapes = [tuple(layer()[0].shape[2:]) for _ in range(120)]
    tens = [shapes[at : at + 10] for at in range(0, 120, 10)]
    assert all(len(set(ten)) == 1 for ten in tens)
    assert {ten[0] for ten in tens} == {(32, 48), (40, 40), (64, 32)}
    assert_resumes(lambda: source(database, SIZES, "yolo_data_type: 1", batch=1), 13)


def test_windows_by_jitter(database: Path) -> None:
    layer = source(database, SIZES.partition(" resize_param")[0], "yolo_data_type: 1 yolo_data_jitter: 0.6", batch=1)
    torch.manual_seed(2)
    seen = []
    for _ in range(30):
        image, label = layer()
        first = label[0, 0, 0].numpy()
        if first[3]:
            middle = image[0, :, int(first[2] * 32), int(first[1] * 48)]  # its colour is 60 times the label
            assert abs(float(middle[0]) / 60 - (first[0] + 1)) < 0.2
            seen.append(float(first[3]))
    assert len({round(width, 4) for width in seen}) > 3 and max(seen) > 0.6


@pytest.mark.parametrize(
    ("sizes", "words"), [(SIZES.replace("0.5", "0.1"), "the prob of all 3"), (SIZES + " resize_param { }", "a height")]
)
def test_sizes_that_do_not_go(database: Path, sizes: str, words: str) -> None:
    with pytest.raises(LayerError, match=words):
        source(database, sizes)


def test_several_sizes_are_no_unknown_fields() -> None:
    text = f'layer {{ name: "d" type: "AnnotatedData" top: "d" transform_param {{ {SIZES} }} }}'
    for strict in (True, False):
        net = parse(text, caffe_pb2.NetParameter, strict=strict)
        assert not unknown.unknown_fields(net)
        assert " ".join(format_message(net).split()) == text
