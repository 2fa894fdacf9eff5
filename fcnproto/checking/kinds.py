"""Every kind of finding: its level, what it is, why it matters and what to do. docs/check.md is made of these texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fcnproto.checking.findings import Finding, Level, listed


@dataclass(frozen=True)
class Kind:
    """One kind of finding. `levels`: those it can have, the usual one first; `title` is what it is about, `why` follows
    on "so", `remedy` is the line to paste."""

    levels: tuple[Level, ...]
    title: str
    why: str
    remedy: str

    @property
    def level(self) -> Level:
        """The level unless a rule says another."""
        return self.levels[0]


_FAULT: tuple[Level, ...] = ("fault",)
_SUSPECT: tuple[Level, ...] = ("suspect",)
_NOTE: tuple[Level, ...] = ("note",)
_EITHER: tuple[Level, ...] = ("fault", "suspect")
_FILLER = 'weight_filler { type: "xavier" }'
_UP = 'group: C weight_filler { type: "bilinear" } (C: num_output), or `fcnproto surgery interpolate`'

GROUPS: dict[str, dict[str, Kind]] = {
    "The net": {
        "never-learns": Kind(
            _FAULT,
            "layers that are to be learned, but multiply by zeros for ever",
            "no gradient ever reaches these layers and they stay as they are",
            f"give weights, or {_FILLER} to every layer that is learned",
        ),
        "unfilled": Kind(
            _FAULT,
            "layers without weights, filler and learning rate: all they give is 0",
            "no gradient passes below and the loss stays at ln K",
            f"give weights or a weight_filler; for upsampling {_UP}",
        ),
        "ungrouped-bilinear": Kind(
            _FAULT,
            "a bilinear filler without group, which fills every pair of channels",
            "each class gets the sum of all classes' scores, and all are alike",
            "add `group: C` (C: num_output), as in the published nets",
        ),
        "upsampling-gain": Kind(
            _EITHER,
            "an upsampling that makes what it enlarges larger or smaller, or larger in some places than in others",
            "scores that are added to others weigh too much or too little, and edges get a pattern",
            f"make it interpolate: {_UP}",
        ),
        "crop-offset": Kind(
            _EITHER,
            "a Crop that begins elsewhere than where its bottoms lie on each other",
            "scores and labels (or the two branches) are shifted against each other by so many pixels",
            "write the offset that is said, or load with --crop aligned where none is given",
        ),
        "padding": Kind(
            _SUSPECT,
            "padding that is larger than the image",
            "most of what the net sees is zeros",
            "pad less, or give larger images",
        ),
        "small-receptive-field": Kind(
            _SUSPECT,
            "scores that see less of the image than an object fills",
            "the inside of an object looks the same as anything of its colour",
            "add pooling or dilation, or make the images smaller",
        ),
        "no-weights": Kind(
            _SUSPECT,
            "a net that is trained from pretrained weights, without any",
            "it begins with random numbers (or zeros) and needs far more images and iterations than are given here",
            "add --weights FILE.caffemodel (`fcnproto zoo info NAME` says where the published ones are)",
        ),
        "few-weights": Kind(
            _SUSPECT,
            "weights that fill hardly anything of the net",
            "what they lack begins with its fillers, as if the weights had been forgotten",
            "look for the names: `fcnproto extract W.caffemodel -o w.prototxt`, and name the layers as there",
        ),
        "old-classes": Kind(
            _SUSPECT,
            "a score layer with another number of classes than the data or the weights have",
            "weights don't fit, or classes of other data take part in the scores",
            "`fcnproto finetune` makes a net for the classes of your masks; without training `fcnproto surgery "
            "set-classes NET --classes K -o NEW.prototxt`, or another num_output and name",
        ),
    },
    "Losses": {
        "no-loss": Kind(
            _FAULT,
            "nothing is minimised, or nothing that depends on what is learned",
            "nothing is learned",
            "add a loss layer, such as SoftmaxWithLoss; look at include rules, lr_mult and propagate_down",
        ),
        "loss-weight-forgotten": Kind(
            _SUSPECT,
            "a Python layer that looks like a loss, but has no loss_weight",
            "its value is shown and never minimised",
            "add `loss_weight: 1` to the layer",
        ),
        "loss-normalisation": Kind(
            _EITHER,
            "a rate made for a summed loss with a mean one, or the other way round",
            "steps are as many times too small (nothing moves) or too large (it explodes) as there are pixels",
            "summed: `loss_param { normalize: false }` with base_lr 1e-10; mean: `normalize: true` with base_lr 1e-4",
        ),
        "loss-scales": Kind(
            _SUSPECT,
            "losses of which one weighs many times the other",
            "the smaller one is hardly learned",
            "normalise both the same way, or balance them with loss_weight",
        ),
        "score-stride": Kind(
            _SUSPECT,
            "scores of another size than their labels",
            "each label is compared with a score of another place, or the loss stops",
            "add a Deconvolution (bilinear) and a Crop to the label's size before the loss",
        ),
        "infogain-size": Kind(
            _SUSPECT,
            "an InfogainLoss whose matrix is not classes x classes",
            "the loss stops at the first batch",
            "write the matrix anew: K*K values for K classes",
        ),
        "void-not-ignored": Kind(
            _FAULT,
            "labels 255 (void) that the loss takes for a class",
            "the loss stops at such a label on the CPU and is no number on a GPU (Caffe reads past the blob)",
            "add `loss_param { ignore_label: 255 }` to the loss",
        ),
    },
    "Solver": {
        "rate-too-small": Kind(
            _EITHER,
            "a rate with which nothing can move in max_iter iterations",
            "the net stays what it is from the first to the last iteration",
            "raise base_lr (or max_iter)",
        ),
        "momentum": Kind(
            _SUSPECT,
            "momentum 0.99 with a mean loss, made for summed ones and batches of one image",
            "a step counts a hundred times, which makes usual rates explode",
            "momentum: 0.9, or divide base_lr by 10",
        ),
        "iter-size": Kind(
            _SUSPECT,
            "an iter_size that does not do what it is for",
            "batch statistics are still those of one small batch, or no batch is read at all",
            "iter_size: 1 and a larger batch_size, or use_global_stats: true",
        ),
        "test-leaves-out": Kind(
            _SUSPECT,
            "a test that doesn't see all of its images",
            "its figures are those of a part of the images, and change with their order",
            "test_iter: number of images / batch_size",
        ),
        "steps-beyond": Kind(
            _SUSPECT,
            "steps of the rate that come after the last iteration",
            "the rate never falls",
            "a stepsize (or stepvalues) below max_iter",
        ),
        "snapshot-folder": Kind(
            ("note", "fault"),
            "the folder of the snapshots isn't there",
            "`fcnproto train` makes it (the original Caffe stops), or can't write there",
            "`mkdir -p` the folder of snapshot_prefix, or name another",
        ),
        "no-gpu": Kind(
            _NOTE,
            "a GPU is asked for and there is none",
            "training runs on the CPU, much slower",
            "solver_mode: CPU says so, or run it where a GPU is",
        ),
    },
    "Data layers": {
        "unaligned-random": Kind(
            _FAULT,
            "images and labels from separate layers that crop, mirror or shuffle at random, each for itself",
            "images and label maps of separate layers no longer lie on each other (in Caffe too)",
            "transform them when the databases are written, or read both by one layer (fcnproto_layers.ImageMaskLayer)",
        ),
        "mean-twice": Kind(
            _FAULT,
            "the mean is taken off twice",
            "images are far darker than any the weights have seen",
            "take it off once: leave out mean_value (mean_file) or the layer that shifts",
        ),
        "scale-twice": Kind(
            _SUSPECT,
            "values are scaled down twice",
            "all images are nearly the same number",
            "scale once: leave out transform_param's scale or the Power layer's",
        ),
        "no-mean": Kind(
            _SUSPECT,
            "colour images from which no mean is taken and that are not scaled",
            "pretrained weights see images far brighter than those that they were trained on",
            "transform_param { mean_value: 104.007 mean_value: 116.669 mean_value: 122.679 }",
        ),
        "channel-order": Kind(
            _SUSPECT,
            "a mean in the order RGB for images in the order BGR, or images in the order RGB for weights that want BGR",
            "red and blue are shifted the wrong way, or the whole image is in the wrong order",
            "mean_value: 104.007 mean_value: 116.669 mean_value: 122.679 (blue, green, red)",
        ),
        "unfed-input": Kind(
            _NOTE,
            "Input layers in a net that is to be trained",
            "training from the command line has nothing to put in there",
            "use a data layer (Data, ImageData, fcnproto_layers.ImageMaskLayer), or solver.step(1, data=x, label=y)",
        ),
        "list-bom": Kind(
            _SUSPECT,
            "a list file that begins with a byte order mark",
            "the original Caffe looks for a first file whose name begins with it (here it is skipped)",
            "save the list as UTF-8 without BOM: `sed -i '1s/^\\xEF\\xBB\\xBF//' LIST`",
        ),
        "missing-files": Kind(
            ("suspect", "note"),
            "sources, or files that a list names, that aren't there",
            "training stops when it comes to them",
            "correct source, root_folder or the list; relative names count from the working directory",
        ),
        "database-size": Kind(
            _SUSPECT,
            "databases of images and labels with different numbers or sizes of records",
            "images get the labels of others from the first round on",
            "write both from one list, in one order",
        ),
        "crop-larger": Kind(
            _SUSPECT,
            "a crop_size larger than the images",
            "the layer stops at the first image",
            "a smaller crop_size, or larger images (new_height, new_width)",
        ),
        "warned": Kind(
            _NOTE,
            "what reading the files warned of",
            "it is understood otherwise than it may be meant",
            "see the message",
        ),
    },
    "Images and masks": {
        "class-never-occurs": Kind(
            _FAULT,
            "a class that no mask holds",
            "nothing of it can be learned or scored",
            "correct the masks or the list of classes; --allow-empty-classes trains without",
        ),
        "rare-class": Kind(
            _SUSPECT,
            "a class that fills less than a thousandth of the pixels",
            "a net that never says it has nearly the same loss",
            "weigh the classes (InfogainLoss; `fcnproto finetune --class-weights balanced`), or add images",
        ),
        "binary-masks": Kind(
            _FAULT,
            "masks of 0 and 255 for two classes: the object is void",
            "everything is background: mean IU is 1 from the first iteration on, and nothing is learned",
            "add --binary-masks, or write 1 in place of 255",
        ),
        "label-out-of-range": Kind(
            _FAULT,
            "labels that no class has",
            "the loss stops at them",
            "correct the masks, or num_output of the score layer",
        ),
        "colour-masks": Kind(
            _SUSPECT,
            "masks whose colours stand for classes, read as grey",
            "labels are brightnesses, not classes",
            "give a table of colours (`fcnproto finetune --colours FILE`), or write palette images",
        ),
        "interpolated-masks": Kind(
            _SUSPECT,
            "masks that were resized with interpolation",
            "edges carry labels of classes that aren't there",
            "resize masks with the nearest neighbour (PIL: Image.NEAREST)",
        ),
        "size-mismatch": Kind(
            _SUSPECT,
            "images and masks of different sizes",
            "they don't lie on each other",
            "resize or cut both the same way",
        ),
        "shifted-masks": Kind(
            _SUSPECT,
            "masks that lie beside what they show",
            "edges are learned where there are none",
            "shift the masks back by so many pixels",
        ),
        "duplicates": Kind(
            _SUSPECT,
            "the same image in training and in validation",
            "validation shows what is known by heart",
            "take it out of one of the two",
        ),
        "dark-images": Kind(
            _SUSPECT,
            "images that are nearly black, as 16-bit ones whose upper eight bits are read",
            "all images look alike to the net",
            "scale them to 0..255 and save with 8 bits",
        ),
        "unreadable": Kind(
            _SUSPECT,
            "an image, a mask or a batch that can't be read",
            "training stops there",
            "see the message",
        ),
    },
    "A few steps": {
        "constant-loss": Kind(
            _SUSPECT,
            "a loss that stays where all classes are equally likely",
            "nothing that tells classes apart has been learned",
            "raise base_lr; `fcnproto check --overfit` says whether the net can learn at all",
        ),
        "vanishing-gradient": Kind(
            _SUSPECT,
            "gradients that fade away on their way down",
            "the lower layers hardly learn",
            "begin with pretrained weights, or fillers that keep the scale (msra), or add BatchNorm",
        ),
        "exploding-gradient": Kind(
            _SUSPECT,
            "gradients that grow on their way down",
            "the first steps throw the lower layers off",
            "clip_gradients: 10, a lower base_lr, or fillers that keep the scale (msra)",
        ),
        "dead-relu": Kind(
            _SUSPECT,
            "a ReLU most of whose channels give 0 everywhere",
            "no gradient passes them",
            "a lower base_lr, a bias_filler above 0, or negative_slope",
        ),
        "saturated-scores": Kind(
            _SUSPECT,
            "scores so far apart that the loss has no slope",
            "a wrong pixel costs much and changes nothing",
            "take the mean off the images, or fill the score layer with smaller numbers",
        ),
        "constant-scores": Kind(
            _SUSPECT,
            "scores that are alike for all classes or all pixels",
            "the answer doesn't depend on the image",
            "look for the layer where it begins: `fcnproto pictures NET WEIGHTS --activations BLOB`",
        ),
        "update-ratio": Kind(
            _SUSPECT,
            "updates outside of 1e-5 to 1e-1 of the weights",
            "the layer stands still, or loses what it knew",
            "change base_lr, or the layer's lr_mult",
        ),
        "not-a-number": Kind(
            _SUSPECT,
            "a value that is no number",
            "everything behind it is lost",
            "a lower base_lr, clip_gradients: 10, or correct the layer that it began in",
        ),
        "not-memorised": Kind(
            _SUSPECT,
            "one image that can't be learned by heart",
            "what can't be done with one image can't be done with many",
            "look at labels, losses and layers that are frozen or 0",
        ),
    },
    "The original Caffe": {
        "caffe-refuses": Kind(
            _FAULT,
            "what the original Caffe stops at",
            "the original Caffe stops there",
            "change it if the net is to run there",
        ),
        "caffe-gradient": Kind(
            ("suspect", "fault"),
            "a gradient that is another in Caffe, whose layers share memory",
            "the original Caffe trains this net on other gradients than the true ones",
            "give the in-place layer a top of its own; `fcnproto train --caffe-exact` does as Caffe does",
        ),
    },
}
"""The kinds by group and code."""

KINDS = {code: kind for group in GROUPS.values() for code, kind in group.items()}


def found(
    code: str,
    where: str | Sequence[str],
    seen: str,
    *,
    level: Level | None = None,
    why: str | None = None,
    remedy: str | None = None,
    layers: Sequence[str] = (),
) -> Finding:
    """A finding of a kind, with the kind's texts where none are given. `where`: a place, or the names of layers."""
    kind = KINDS[code]
    if not isinstance(where, str):
        where, layers = listed(where), where
    return Finding(level or kind.level, code, where, seen, why or kind.why, remedy or kind.remedy, tuple(layers))
