#!/usr/bin/env python
"""Writes what a net computes in Caffe to a file that `fcnproto parity --golden` reads.

Stands alone: needs pycaffe and numpy, Python 2.7 or 3. Run it where Caffe lives:

    python dump_caffe.py deploy.prototxt net.caffemodel dump.npz --input inputs.npz --backward

inputs.npz has one array for each input blob, under the blob's name or `in.` and the name; inputs without one get random
numbers of the blob's shape (--seed). Keys written: in.<blob>, out.<blob>, and with --backward gout.<blob>, gin.<blob>,
gparam.<layer>.<i>; with --params also param.<layer>.<i>. --blobs a,b writes these blobs alone.
"""

# mypy: ignore-errors
from __future__ import print_function

import argparse
import sys

import numpy as np


def read_options():
    """The command line."""
    parser = argparse.ArgumentParser(description="Write the blobs (and gradients) of a Caffe net to an .npz file.")
    parser.add_argument("model", help="the net's .prototxt")
    parser.add_argument("weights", help="its .caffemodel or .caffemodel.h5")
    parser.add_argument("output", help="the .npz file to write")
    parser.add_argument("--input", help=".npz file of input arrays")
    parser.add_argument("--phase", choices=["test", "train"], default="test")
    parser.add_argument("--blobs", help="write these blobs only, separated by commas")
    parser.add_argument("--backward", action="store_true", help="write gradients too")
    parser.add_argument("--params", action="store_true", help="write the parameters too")
    parser.add_argument("--seed", type=int, default=1, help="of random inputs and of gradients put in at outputs")
    return parser.parse_args()


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
    if not any(weight != 0 for weight in loss_weights(net)):
        for name in net.outputs:
            seeds[name] = draw.standard_normal(net.blobs[name].data.shape).astype(np.float32)
    for layer in net.params:
        for blob in net.params[layer]:
            blob.diff[...] = 0
    net.backward(**seeds)
    return seeds


def loss_weights(net):
    """The gradients that Caffe itself puts at losses; all zero for a net without."""
    weights = getattr(net, "blob_loss_weights", None)
    if weights is not None:
        return [weights[name] for name in weights]
    return [0 if not layer.type.endswith("Loss") else 1 for layer in net.layers]


def main():
    """Loads, runs, writes."""
    options = read_options()
    import caffe

    draw = np.random.RandomState(options.seed)
    net = caffe.Net(options.model, options.weights, caffe.TRAIN if options.phase == "train" else caffe.TEST)
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
            if slope.any():  # Caffe leaves it out (zero) unless the prototxt says force_backward: true
                arrays["gin." + key[3:]] = slope
        for layer in net.params:
            for index, blob in enumerate(net.params[layer]):
                arrays["gparam.%s.%d" % (layer, index)] = np.array(blob.diff, dtype=np.float32)
    np.savez(options.output, **arrays)
    print("%s: %d arrays" % (options.output, len(arrays)))


if __name__ == "__main__":
    main()
