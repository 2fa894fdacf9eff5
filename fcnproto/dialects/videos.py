"""VideoData, which is another layer in SSD, in temporal segment networks (yjxiong) and in C3D: frames of videos.

No video is opened here: what its tops are is known, so that nets load and are sized, and the frames are to be given.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fcnproto.data.transform import DataTransform
from fcnproto.layers.base import Shape
from fcnproto.layers.registry import register
from fcnproto.layers.source import PartialShape, SourceLayer
from fcnproto.schema import caffe_pb2

_Video = caffe_pb2.VideoDataParameter
_OF_C3D = ("use_image", "sampling_rate", "root_folder", "use_temporal_jitter", "is_color", "use_multiple_label")
_OF_SSD = ("video_type", "device_id", "video_file", "skip_frames")


@register("VideoData")
class VideoData(SourceLayer):
    """Frames of videos; which fork's layer it is, its settings tell.

    SSD's (a camera or a file, one top): frames (N, C, H, W). yjxiong's: `new_length` frames of each of `num_segments`
    parts of a video as channels, (N, channels, H, W), 3 channels a frame, 2 of FLOW, 1 of `grayscale`, and labels (N,
    1, 1, 1). C3D's: volumes (N, 3, new_length, H, W) and labels (N,), or (N, num_of_labels); of its first version the
    settings are in `image_data_param`, and labels (N, 1, 1, 1, 1).
    """

    fork = "SSD; yjxiong (temporal segment networks); C3D"
    config_field = "video_data_param"
    also_reads = ("transform_param", "data_param", "image_data_param")
    fork_fields = (
        *("transform_param.resize_param", "transform_param.crop_h", "transform_param.crop_w"),
        *("image_data_param.new_length", "image_data_param.use_image", "image_data_param.sampling_rate"),
        *("image_data_param.use_temporal_jitter", "image_data_param.mean_value", "image_data_param.show_data"),
    )
    tops = (1, 2)
    differences = "videos are not read: its tops are to be given at the call."

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.transform = DataTransform(self.param.transform_param)
        problem = self.transform.problem()
        if problem:
            self.fail(problem)

    def forward(self) -> tuple[Tensor, ...]:
        self.data_error(f"reads videos, which is not done here; give {', '.join(self.param.top)} at the call")

    def top_shapes(self, shapes: Sequence[Shape]) -> list[PartialShape]:
        every = self._of_c3d() if self._is_c3d else self._of_ssd() if self._is_ssd else self._of_segments()
        if self.num_tops > len(every):
            self.fail(f"gives {len(every)} top, has {self.num_tops}")
        return every[: self.num_tops]

    def _given(self, names: Sequence[str]) -> bool:
        return any(self.config.HasField(name) for name in names)

    @property
    def _is_c3d(self) -> bool:
        return self.param.HasField("image_data_param") or self._given(_OF_C3D)

    @property
    def _is_ssd(self) -> bool:
        return self._given(_OF_SSD) or not self.config.HasField("source")

    def _size(self, height: int, width: int) -> tuple[int | None, int | None]:
        """Of the crop, else as given."""
        rows, columns = self.transform.crop
        return (rows, columns) if rows else (height or None, width or None)

    def _of_ssd(self) -> list[PartialShape]:
        settings, resize = self.param.transform_param, self.param.transform_param.resize_param
        fixed = settings.HasField("resize_param") and resize.resize_mode != resize.FIT_SMALL_SIZE
        size = self._size(resize.height, resize.width) if fixed else self._size(0, 0)
        channels = len(settings.mean_value)
        return [(self.param.data_param.batch_size or 1, channels if channels > 1 else 3, *size)]

    def _of_segments(self) -> list[PartialShape]:
        config = self.config
        each = 2 if config.modality == _Video.FLOW else 1 if config.grayscale else 3
        channels = each * config.new_length * config.num_segments
        size = self._size(config.new_height, config.new_width)
        return [(config.batch_size, channels, *size), (config.batch_size, 1, 1, 1)]

    def _of_c3d(self) -> list[PartialShape]:
        if self.param.HasField("image_data_param"):  # its first version
            first = self.param.image_data_param
            size = (first.crop_size, first.crop_size) if first.crop_size else (first.new_height, first.new_width)
            label: PartialShape = (first.batch_size, 1, 1, 1, 1)
            return [(first.batch_size, 3, first.new_length, size[0] or None, size[1] or None), label]
        config = self.config
        labels = (config.num_of_labels,) if config.use_multiple_label else ()
        size_now = self._size(config.new_height, config.new_width)
        channels = 3 if config.is_color else 1
        return [(config.batch_size, channels, config.new_length, *size_now), (config.batch_size, *labels)]
