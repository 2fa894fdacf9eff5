"""Label maps out of the files of annotation tools: labelme's JSON, COCO's JSON, CVAT's XML and Pascal VOC's XML.

Each reader gives `Drawn`: the size of an image, and what is drawn on it by the names of classes, the topmost last.
`paint` makes labels of it.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from fcnproto.data import shapes
from fcnproto.data.images import FAULTS
from fcnproto.data.shapes import Size
from fcnproto.errors import DataError, FcnprotoWarning
from fcnproto.schema.fields import suggestion

PathLike = str | os.PathLike[str]
VOID = 255
_VOID_NAMES = ("void", "ignore", "__ignore__", "unlabelled", "unlabeled")
_BACKGROUND_NAMES = ("background", "_background_", "__background__")
_MOST_PIXELS = 1 << 28


@dataclass
class Drawn:
    """What is drawn on an image: its size, and (name of the class, the pixels for that size) with the topmost last.

    The size is None where the file says none; `where` is the file (and the image in it) for messages.
    """

    where: str
    size: Size | None
    pieces: list[tuple[str, Callable[[Size], np.ndarray]]] = field(default_factory=list)


def paint(drawn: Drawn, names: Sequence[str], size: Size | None = None) -> np.ndarray:
    """The labels (height, width) uint8 of what is drawn, for classes of these names.

    Pixels on which nothing is drawn are label 0 where that is called background, else void (255); so are those of
    what is called void or ignore. `size` is the image's (height, width). Raises `DataError` for names that are no
    class, for an image of another size, and for shapes that are none.
    """
    known = drawn.size or size
    if known is None:
        raise DataError(f"{drawn.where}: doesn't say how large its image is")
    if size is not None and known != size:
        raise DataError(f"{drawn.where}: is for an image of {known[1]}x{known[0]}, but that is {size[1]}x{size[0]}")
    if min(known) < 1 or known[0] * known[1] > _MOST_PIXELS:
        raise DataError(f"{drawn.where}: says that its image is {known[1]}x{known[0]}")
    bare = 0 if names and is_background_name(names[0]) else VOID
    labels = np.full(known, bare, dtype=np.uint8)
    for name, pixels in drawn.pieces:
        label = _label(name, names, drawn.where)
        try:
            labels[pixels(known)] = label
        except DataError as error:
            raise DataError(f"{drawn.where}: {name!r} {error}") from None
    return labels


def is_background_name(name: str) -> bool:
    """Whether a class of this name, as the first one, is what unlabelled pixels are."""
    return name.lower() in _BACKGROUND_NAMES


def _label(name: str, names: Sequence[str], where: str) -> int:
    if name in names:
        return names.index(name)
    if name.lower() in _VOID_NAMES:
        return VOID
    if name.lower() in _BACKGROUND_NAMES and names and names[0].lower() in _BACKGROUND_NAMES:
        return 0
    near = suggestion(name, names)
    raise DataError(f"{where}: {name!r} is none of the classes{near or '; these are ' + ', '.join(names)}")


def read_json(path: PathLike) -> Any:
    """The content of a JSON file. Raises `DataError`."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{os.fspath(path)}: can't be read as JSON: {error}") from error


def is_labelme(content: Any) -> bool:
    """Whether JSON is a file of labelme's."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list)


def is_coco(content: Any) -> bool:
    """Whether JSON is a file of COCO's."""
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in ("images", "annotations"))


def read_labelme(path: PathLike) -> Drawn:
    """What is drawn in a labelme file, shapes in their order. Raises `DataError`."""
    where, content = os.fspath(path), read_json(path)
    if not is_labelme(content):
        raise DataError(f"{where}: is no file of labelme's: it has no list of shapes")
    sides = content.get("imageHeight"), content.get("imageWidth")
    drawn = Drawn(where, sides if all(isinstance(side, int) for side in sides) else None)  # type: ignore[arg-type]
    for shape in content["shapes"]:
        points = shape.get("points") if isinstance(shape, dict) else None
        if not isinstance(points, list) or not isinstance(shape.get("label"), str):
            raise DataError(f"{where}: has a shape without label or points")
        kind = shape.get("shape_type") or "polygon"
        drawn.pieces.append((shape["label"], _labelme_pixels(kind, points, shape.get("mask"))))
    return drawn


def _labelme_pixels(kind: str, points: list[Any], mask: Any) -> Callable[[Size], np.ndarray]:
    def pixels(size: Size) -> np.ndarray:
        if kind == "mask":
            return _pasted(mask, points, size)
        try:
            pairs = [(x, y) for x, y in points]
        except (TypeError, ValueError):
            raise DataError("has points that are no pairs of numbers") from None
        return shapes.drawn(kind, pairs, size)

    return pixels


def _pasted(text: Any, points: list[Any], size: Size) -> np.ndarray:
    """The pixels of a labelme shape that is an image: base64 of a PNG, its place by the first point."""
    try:
        left, top = (round(value) for value in points[0])
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as image:
            part = np.asarray(image.convert("1"))
    except (*FAULTS, binascii.Error) as error:
        raise DataError(f"has a mask that can't be read ({error})") from None
    height, width = part.shape
    if left < 0 or top < 0 or top + height > size[0] or left + width > size[1]:
        raise DataError(f"has a mask of {width}x{height} at {left}, {top}, beyond the image")
    pixels = np.zeros(size, dtype=bool)
    pixels[top : top + height, left : left + width] = part
    return pixels


def read_coco(path: PathLike) -> dict[str, Drawn]:
    """What is drawn in a COCO file, by the images' file names: annotations in their order. Raises `DataError`."""
    where, content = os.fspath(path), read_json(path)
    if not is_coco(content):
        raise DataError(f"{where}: is no file of COCO's: it has no lists of images and annotations")
    try:
        titles = {one["id"]: str(one["name"]) for one in content.get("categories", ())}
        images = {}
        for one in content["images"]:
            size = (int(one["height"]), int(one["width"])) if "height" in one and "width" in one else None
            images[one["id"]] = (str(one["file_name"]), Drawn(f"{where}: {one['file_name']}", size))
        for one in content["annotations"]:
            if one["image_id"] not in images or one["category_id"] not in titles:
                raise DataError(f"{where}: annotation {one.get('id')} is of an image or a category that isn't there")
            segments = one.get("segmentation")
            pixels = _coco_pixels(segments if segments else one.get("bbox"))
            images[one["image_id"]][1].pieces.append((titles[one["category_id"]], pixels))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: is not as COCO's files are: {type(error).__name__} {error}") from None
    return dict(images.values())


def _coco_pixels(segments: Any) -> Callable[[Size], np.ndarray]:
    def pixels(size: Size) -> np.ndarray:
        if isinstance(segments, Mapping):
            if list(segments.get("size", ())) != list(size):
                raise DataError(f"has run lengths for a size of {segments.get('size')}, the image's is {list(size)}")
            return shapes.run_lengths(segments.get("counts", ()), size)
        if not isinstance(segments, list) or not segments:
            raise DataError("has neither polygons nor run lengths")
        if len(segments) == 4 and all(isinstance(value, int | float) for value in segments):
            left, top, width, height = segments
            return shapes.polygons([shapes.box_corners(left, top, left + width, top + height)], size)
        if not all(isinstance(one, list) and len(one) % 2 == 0 for one in segments):
            raise DataError("has a polygon that is no list of pairs of numbers")
        return shapes.polygons([list(zip(one[::2], one[1::2], strict=True)) for one in segments], size)

    return pixels


def read_xml(path: PathLike) -> ElementTree.Element:
    """The root of an XML file. Raises `DataError`, also where it defines entities."""
    try:
        content = Path(path).read_bytes()
        if b"<!ENTITY" in content.upper():
            raise DataError(f"{os.fspath(path)}: defines entities, which no annotation tool does")
        return ElementTree.fromstring(content)
    except (OSError, ElementTree.ParseError, LookupError, ValueError) as error:
        raise DataError(f"{os.fspath(path)}: can't be read as XML: {error}") from error


def read_cvat(root: ElementTree.Element, where: str) -> dict[str, Drawn]:
    """What is drawn in a CVAT file ("CVAT for images"), by the images' names: by z_order, then as they stand.

    Polygons, boxes, ellipses and masks count; lines and points have no area, and a warning tells of them.
    """
    found, left_out = {}, 0
    for image in root.iter("image"):
        name = image.get("name", "")
        drawn = Drawn(f"{where}: {name}", (int(_number(image, "height", where)), int(_number(image, "width", where))))
        areas = [one for one in image if one.tag in _CVAT]
        left_out += sum(one.tag in ("polyline", "points", "cuboid", "skeleton") for one in image)
        for one in sorted(areas, key=lambda shape: _number(shape, "z_order", where, 0)):
            drawn.pieces.append((one.get("label", ""), _CVAT[one.tag](one, drawn.where)))
        found[name] = drawn
    if left_out:
        warnings.warn(
            f"{where}: {left_out} lines, points and the like have no area and are left out",
            FcnprotoWarning,
            stacklevel=2,
        )
    return found


def _number(element: ElementTree.Element, name: str, where: str, default: float | None = None) -> float:
    text = element.get(name)
    try:
        return float(text) if text is not None or default is None else default  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise DataError(f"{where}: <{element.tag}> has {name}={text!r}, a number is expected") from None


def _numbers(element: ElementTree.Element, where: str, *names: str) -> list[float]:
    return [_number(element, name, where) for name in names]


def _cvat_polygon(element: ElementTree.Element, where: str) -> Callable[[Size], np.ndarray]:
    try:
        pairs = [tuple(map(float, pair.split(","))) for pair in element.get("points", "").split(";") if pair.strip()]
    except ValueError:
        raise DataError(f"{where}: a polygon's points are {element.get('points')!r}; expected x,y;x,y;...") from None
    return lambda size: shapes.polygons([pairs], size)  # type: ignore[list-item]


def _cvat_box(element: ElementTree.Element, where: str) -> Callable[[Size], np.ndarray]:
    left, top, right, bottom = _numbers(element, where, "xtl", "ytl", "xbr", "ybr")
    corners = shapes.box_corners(left, top, right, bottom, _number(element, "rotation", where, 0))
    return lambda size: shapes.polygons([corners], size)


def _cvat_ellipse(element: ElementTree.Element, where: str) -> Callable[[Size], np.ndarray]:
    x, y, across, down = _numbers(element, where, "cx", "cy", "rx", "ry")
    points = shapes.ellipse_points(x, y, across, down, _number(element, "rotation", where, 0))
    return lambda size: shapes.polygons([points], size)


def _cvat_mask(element: ElementTree.Element, where: str) -> Callable[[Size], np.ndarray]:
    left, top, width, height = map(int, _numbers(element, where, "left", "top", "width", "height"))
    try:
        counts = [int(part) for part in element.get("rle", "").split(",")]
    except ValueError:
        raise DataError(f"{where}: a mask's run lengths are no numbers") from None

    def pixels(size: Size) -> np.ndarray:
        if min(left, top) < 0 or top + height > size[0] or left + width > size[1]:
            raise DataError(f"has a mask of {width}x{height} at {left}, {top}, beyond the image")
        whole = np.zeros(size, dtype=bool)
        # CVAT's run lengths go row by row, COCO's column by column.
        whole[top : top + height, left : left + width] = shapes.run_lengths(counts, (width, height)).T
        return whole

    return pixels


_CVAT: Mapping[str, Callable[[ElementTree.Element, str], Callable[[Size], np.ndarray]]] = {
    "polygon": _cvat_polygon,
    "box": _cvat_box,
    "ellipse": _cvat_ellipse,
    "mask": _cvat_mask,
}


def read_voc(root: ElementTree.Element, where: str) -> Drawn:
    """What is drawn in a Pascal VOC file, objects in their order: polygons where they have one, else their boxes,
    whose corners are pixels counted from 1 and belong to them."""
    sizes = [root.findtext(f"size/{side}") for side in ("height", "width")]
    drawn = Drawn(where, (int(sizes[0]), int(sizes[1])) if all(one and one.isdecimal() for one in sizes) else None)  # type: ignore[arg-type]
    for thing in root.iter("object"):
        name, outline = (thing.findtext("name") or "").strip(), thing.find("polygon")
        corners = list(_voc_points(outline, where)) if outline is not None else []
        if corners:
            drawn.pieces.append((name, lambda size, corners=corners: shapes.polygons([corners], size)))  # type: ignore[misc]
            continue
        box = thing.find("bndbox")
        try:
            sides = [float(box.findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax")]  # type: ignore[union-attr, arg-type]
        except (AttributeError, TypeError, ValueError):
            raise DataError(f"{where}: an object {name!r} has neither a polygon nor a box") from None
        drawn.pieces.append((name, _boxed(*sides)))
    return drawn


def _voc_points(outline: ElementTree.Element, where: str) -> Iterator[tuple[float, float]]:
    """The points of a polygon: <pt><x/><y/></pt>, or <x1/><y1/><x2/><y2/>..."""
    try:
        for point in outline.iter("pt"):
            yield float(point.findtext("x")), float(point.findtext("y"))  # type: ignore[arg-type]
        number = 1
        while outline.find(f"x{number}") is not None:
            yield float(outline.findtext(f"x{number}")), float(outline.findtext(f"y{number}"))  # type: ignore[arg-type]
            number += 1
    except (TypeError, ValueError):
        raise DataError(f"{where}: a polygon has a point without numbers") from None


def _boxed(left: float, top: float, right: float, bottom: float) -> Callable[[Size], np.ndarray]:
    def pixels(size: Size) -> np.ndarray:
        inside = np.zeros(size, dtype=bool)
        rows, columns = (
            slice(max(0, round(top) - 1), max(0, round(bottom))),
            slice(max(0, round(left) - 1), max(0, round(right))),
        )
        inside[rows, columns] = True
        return inside

    return pixels
