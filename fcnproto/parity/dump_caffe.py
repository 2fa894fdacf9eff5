#!/usr/bin/env python
"""Writes what a net computes in Caffe to a file that `fcnproto parity --golden` reads.

Stands alone: needs pycaffe and numpy, Python 2.7 or 3 (and h5py, which pycaffe brings, for an .h5). Run it where Caffe
lives:

    python dump_caffe.py deploy.prototxt net.caffemodel dump.npz --input inputs.npz --backward

inputs.npz has one array for each input blob, under the blob's name or `in.` and the name; inputs without one get random
numbers of the blob's shape (--seed). Keys written: in.<blob>, out.<blob>, and with --backward gout.<blob>, gin.<blob>,
gparam.<layer>.<i>; with --params also param.<layer>.<i>. --blobs a,b writes these blobs alone.

The output is an .npz, or HDF5 where its name ends in .h5 or .hdf5, with the same keys. Of a net with data layers of its
own nothing is given in: the blobs that these wrote are among out.<blob>, and are taken for the inputs later.

For a net without loss Caffe computes gradients only where the prototxt says `force_backward: true`. --backward says it
in a copy of such a prototxt; the gradients of parameters with lr_mult 0 are then computed, too.
"""

# mypy: ignore-errors
from __future__ import print_function

import argparse
import os
import re
import shutil
import sys
import tempfile

import numpy as np


def read_options():
    """The command line."""
    parser = argparse.ArgumentParser(description="Write the blobs (and gradients) of a Caffe net to a file.")
    parser.add_argument("model", help="the net's .prototxt")
    parser.add_argument("weights", help="its .caffemodel or .caffemodel.h5")
    parser.add_argument("output", help="the .npz or .h5 file to write")
    parser.add_argument("--input", help=".npz file of input arrays")
    parser.add_argument("--phase", choices=["test", "train"], default="test")
    parser.add_argument("--blobs", help="write these blobs only, separated by commas")
    parser.add_argument("--backward", action="store_true", help="write gradients too")
    parser.add_argument("--params", action="store_true", help="write the parameters too")
    parser.add_argument("--seed", type=int, default=1, help="of random inputs and of gradients put in at outputs")
    return parser.parse_args()


def load(options):
    """The net; one without loss with `force_backward`, where gradients are wanted."""
    import caffe

    phase = caffe.TRAIN if options.phase == "train" else caffe.TEST
    net = caffe.Net(options.model, options.weights, phase)
    if not options.backward or has_loss(net):
        return net
    folder = tempfile.mkdtemp()
    try:
        forced = os.path.join(folder, "forced.prototxt")
        with open(options.model, "rb") as source, open(forced, "wb") as target:
            definition = re.sub(b"force_backward[ \t]*:[ \t]*[a-zA-Z0-9]+", b"", source.read())
            target.write(definition + b"\nforce_backward: true\n")
        return caffe.Net(forced, options.weights, phase)
    finally:
        shutil.rmtree(folder)


def set_inputs(net, path, draw):
    """Gives every input blob its value and returns the values by name."""
    given = {}
    if path:
        archive = np.load(path)
        given = dict((key[3:] if key.startswith("in.") else key, archive[key]) for key in archive.files)
    names = list(net.inputs) + [name for name in given if name not in net.inputs and name in net.blobs]
    unknown = [name for name in given if name not in net.blobs]
    if unknown:
        sys.exit("%s: %s is no blob of the net" % (path, unknown[0]))
    values = {}
    for name in names:
        blob = net.blobs[name]
        value = given.get(name)
        if value is None:
            value = draw.uniform(-100, 100, blob.data.shape)
        values[name] = np.asarray(value, dtype=np.float32)
        blob.reshape(*values[name].shape)
    net.reshape()
    for name in names:
        net.blobs[name].data[...] = values[name]
    return values


def run_backward(net, draw):
    """Runs backward from the losses, or from random gradients where there is none; returns what was put in."""
    seeds = {}
    if not has_loss(net):
        for name in net.outputs:
            seeds[name] = draw.standard_normal(net.blobs[name].data.shape).astype(np.float32)
    for layer in net.params:
        for blob in net.params[layer]:
            blob.diff[...] = 0
    net.backward(**seeds)
    return seeds


def has_loss(net):
    """Whether Caffe itself puts a gradient at some blob."""
    weights = getattr(net, "blob_loss_weights", None)
    if weights is not None:
        return any(weights[name] != 0 for name in weights)
    return any(layer.type.endswith("Loss") for layer in net.layers)


def write(path, arrays):
    """Writes the arrays to an .npz or HDF5 file, which has its name only when it is whole."""
    part = path + ".part"
    if path.endswith((".h5", ".hdf5")):
        import h5py

        # Made in memory: the HDF5 library doesn't live through a disk that fills.
        with h5py.File(part, "w", driver="core", backing_store=False) as target:
            for key in arrays:
                target[key] = arrays[key]
            target.flush()
            image = target.id.get_file_image()
        with open(part, "wb") as target:
            target.write(image)
    else:
        with open(part, "wb") as target:
            np.savez(target, **arrays)
    if os.name == "nt" and os.path.exists(path):  # elsewhere renaming replaces
        os.remove(path)
    os.rename(part, path)


def main():
    """Loads, runs, writes."""
    options = read_options()
    if not options.output.endswith((".npz", ".h5", ".hdf5")):
        sys.exit("%s: the name must end in .npz, .h5 or .hdf5" % options.output)
    draw = np.random.RandomState(options.seed)
    net = load(options)
    arrays = {}
    for name, value in set_inputs(net, options.input, draw).items():
        arrays["in." + name] = value
    net.forward()
    wanted = options.blobs.split(",") if options.blobs else list(net.blobs)
    for name in wanted:
        arrays["out." + name] = np.array(net.blobs[name].data, dtype=np.float32)
    if options.params:
        for layer in net.params:
            for index, blob in enumerate(net.params[layer]):
                arrays["param.%s.%d" % (layer, index)] = np.array(blob.data, dtype=np.float32)
    if options.backward:
        for name, value in run_backward(net, draw).items():
            arrays["gout." + name] = value
        for key in [key for key in arrays if key.startswith("in.")]:
            slope = np.array(net.blobs[key[3:]].diff, dtype=np.float32)
            if slope.any():  # zero: not computed, as the prototxt does not say force_backward
                arrays["gin." + key[3:]] = slope
        for layer in net.params:
            for index, blob in enumerate(net.params[layer]):
                arrays["gparam.%s.%d" % (layer, index)] = np.array(blob.diff, dtype=np.float32)
    write(options.output, arrays)
    print("%s: %d arrays" % (options.output, len(arrays)))


if __name__ == "__main__":
    main()
