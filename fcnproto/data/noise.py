"""SSD's noise (`noise_param`) by OpenCV, which the original is a list of calls of."""

from __future__ import annotations

from typing import Any

import numpy as np

from fcnproto.errors import DataError
from fcnproto.schema import caffe_pb2

# OpenCV's histogram equalisation in tiles: the limit of contrast. Posterised levels are this far apart.
_CONTRAST_LIMIT, _LEVELS = 4, 64


def _opencv() -> Any:
    try:
        import cv2
    except ImportError:
        raise DataError("noise_param needs OpenCV: pip install 'fcnproto[opencv]'") from None
    return cv2


def _on_brightness(cv2: Any, image: np.ndarray, change: Any) -> np.ndarray:
    """`change` applied to the only channel, or to the brightness of a BGR image."""
    if image.shape[2] == 1:
        return np.asarray(change(image[..., 0]))[..., None]
    planes = cv2.cvtColor(image, cv2.COLOR_BGR2YCrCb)
    planes[..., 0] = change(np.ascontiguousarray(planes[..., 0]))
    return np.asarray(cv2.cvtColor(planes, cv2.COLOR_YCrCb2BGR))


def add_noise(image: np.ndarray, settings: caffe_pb2.NoiseParameter, generator: np.random.Generator) -> np.ndarray:
    """The image (h, w, channels) of uint8 after every step that the settings ask for, in SSD's order (`prob` has no
    effect there). Raises `DataError` without OpenCV, and for convert_to_lab, whose floats SSD reads as bytes."""
    if settings.convert_to_lab:
        raise DataError("noise_param.convert_to_lab can't be computed: SSD reads the floats it gives as bytes")
    cv2 = _opencv()
    channels = image.shape[2]
    image = np.ascontiguousarray(image)
    if settings.decolorize:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    if settings.gauss_blur:
        image = cv2.GaussianBlur(image, (7, 7), 1.5)
    if settings.hist_eq:
        image = _on_brightness(cv2, image.reshape(*image.shape[:2], channels), cv2.equalizeHist)
    if settings.clahe:
        image = _on_brightness(cv2, image.reshape(*image.shape[:2], channels), cv2.createCLAHE(_CONTRAST_LIMIT).apply)
    if settings.jpeg > 0:
        _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(settings.jpeg)])
        image = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    if settings.erode:
        image = cv2.erode(image, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3)))
    if settings.posterize:
        image = image // _LEVELS * _LEVELS + _LEVELS // 2
    if settings.inverse:
        image = 255 - image
    result = np.array(image, dtype=np.uint8).reshape(*image.shape[:2], -1)
    if settings.saltpepper:
        _salt(result, settings.saltpepper_param, generator)
    if settings.convert_to_hsv:
        result = cv2.cvtColor(result, cv2.COLOR_BGR2HSV)
    return result


def _salt(image: np.ndarray, settings: caffe_pb2.SaltPepperParameter, generator: np.random.Generator) -> None:
    values = list(settings.value)
    if len(values) not in (1, image.shape[2]):
        raise DataError(
            f"saltpepper_param: {len(values)} values for {image.shape[2]} channels; give one or one for each"
        )
    count = int(settings.fraction * image.shape[0] * image.shape[1])
    places = generator.integers(image.shape[1], size=count), generator.integers(image.shape[0], size=count)
    image[places[1], places[0]] = np.array(values).astype(np.uint8)
