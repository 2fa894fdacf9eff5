"""Segmenting image files and folders into a folder: reading, the net and writing at once, going on where one fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fcnproto.errors import Error, UsageError
from fcnproto.image_files import find_images
from fcnproto.images import pixel_count
from fcnproto.net import Net
from fcnproto.preprocessing import background_labels
from fcnproto.segment.folder import Partners, check_folder, sources
from fcnproto.segment.pipeline import Stages, overlap
from fcnproto.segment.polygons import PolygonFiles
from fcnproto.segment.results import Result, Segmentation
from fcnproto.segment.segmenter import AHEAD, PIXELS_AHEAD, PathLike, Scene, Segmenter
from fcnproto.segment.writing import Writers


def segment(
    net: Net | Segmenter,
    images: PathLike | Sequence[PathLike],
    out_dir: PathLike,
    *,
    inputs: Mapping[str, PathLike] | None = None,
    with_legend: bool = True,
    recursive: bool = False,
    workers: int = 2,
    writers: int = 0,
    compared: int = 5,
    polygons: Sequence[str] = (),
) -> Iterator[Result]:
    """Segment image files and folders, write the results to `out_dir`, and give a `Result` for each image.

    For an image "cat.jpg" and each score blob: `cat_labels.png` (a palette image whose pixels are the labels, in VOC's
    colours), `cat_overlay.png` (the labels' colours over the image, with a legend beside it), and `cat_probs.npz` if
    the segmenter computes probabilities ("probs": float32, 4 bytes for each pixel and class; "classes": their names).
    Where the net has several score blobs their names are in between: `cat_score_geo_labels.png`. Files that exist are
    replaced, but never an image that is read. An image that fails gives a Result with `error`; the rest go on.

    While the net works on some images the next are read and the last are written, by threads; of every 16 images (of 16
    megapixels at most) those of one size go through the net together. Results come in the order of the images.

    Args:
        net: a net, or a `Segmenter` for other than its defaults.
        images: files and folders; see `image_files.find_images`. They feed the first of the net's image inputs that is
            not in `inputs`.
        inputs: for every further input a file, or a folder with an image of the same stem for each one.
        with_legend: draw the legend beside the overlay.
        recursive: look into subfolders (but not into `out_dir`); results go to subfolders of the same names.
        workers: threads that read, and as many that write.
        writers: processes that write instead (0: none), for a GPU that is quicker than the threads. They import the
            script that calls this, so there the call must stand behind `if __name__ == "__main__":`.
        compared: in another precision than float32, the number of images (spread evenly over all) whose labels are
            compared with those that float32 gives; see `Segmentation.agreement`.
        polygons: "labelme" (cat.json for cat.jpg) and "coco" (annotations.coco.json for all, at the end): the label
            maps as polygons, too.

    Raises:
        UsageError: the options don't fit the net, or there are no images. Raised before anything is done, or
            with the first image where only running the net can tell.
    """
    segmenter = net if isinstance(net, Segmenter) else Segmenter(net)
    main, further = sources(segmenter, inputs or {})
    given = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    folder = Path(out_dir)
    files = find_images(given, recursive, leave_out=folder, arrays=segmenter.preprocessing[main].kind == "bands")
    check_folder(folder, given)
    if not files:
        raise UsageError(f"no images in {', '.join(map(str, given)) or 'an empty list'}")
    if workers < 1 or writers < 0:
        what, least, given_number = ("workers", 1, workers) if workers < 1 else ("writers", 0, writers)
        raise UsageError(f"{what} must be {least} or more, not {given_number}")
    partners = {
        blob: Partners(place, arrays=segmenter.preprocessing[blob].kind == "bands") for blob, place in further.items()
    }
    count = min(compared, len(files)) if segmenter.precision != "fp32" else 0
    chosen = {(2 * k + 1) * len(files) // (2 * count) for k in range(count)}
    jobs = [_Job(index, path, name, index in chosen) for index, (path, name) in enumerate(files)]
    pen = Writers(writers, {os.path.realpath(path) for path, _ in files})

    def read(job: _Job) -> Scene:
        paths = {main: job.path} | {blob: found.of(job.path) for blob, found in partners.items()}
        return replace(segmenter.prepare(segmenter.read(paths)), compare=job.compare)

    def write_files(job: _Job, scene: Scene, found: list[Segmentation]) -> Result:
        bare = [background_labels(one.names) for one in found]
        written = pen.write(scene.images[main], found, folder / job.name, bare, with_legend)
        return Result(job.path, job.index, len(files), tuple(written), tuple(found))

    def failed(job: _Job, error: Exception) -> Result:
        if isinstance(error, UsageError) or not isinstance(error, (Error, OSError)):
            raise error
        message = str(error)
        if os.fspath(job.path) not in message:
            message = f"{job.path}: {message}"
        return Result(job.path, job.index, len(files), error=message)

    stages: Stages[_Job, Scene, list[Segmentation], Result] = Stages(
        read,
        segmenter.run,
        write_files,
        failed,
        kind=lambda scene: scene.shape,
        most=segmenter.most_at_once,
        size=lambda job: pixel_count(job.path),
    )
    workers = max(workers, writers)
    results = _ended_by(pen.close, overlap(jobs, stages, ahead=AHEAD, limit=PIXELS_AHEAD, workers=workers))
    if not polygons:
        return results
    return _with_polygons(results, PolygonFiles(folder, polygons), [folder / job.name for job in jobs])


def _with_polygons(results: Iterator[Result], files: PolygonFiles, stems: Sequence[Path]) -> Iterator[Result]:
    for result in results:
        if result.segmentations:
            written = files.add(result.source, stems[result.index], result.segmentations)
            result = replace(result, files=(*result.files, *written))
        yield result
    files.finish()


def _ended_by(end: Callable[[], None], results: Iterator[Result]) -> Iterator[Result]:
    try:
        yield from results
    finally:
        end()


@dataclass(frozen=True)
class _Job:
    """An image to be segmented."""

    index: int
    path: Path
    name: str
    compare: bool
