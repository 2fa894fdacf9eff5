"""Caffe's layer types as torch modules: one file per family, each class registered under its Caffe name.

Importing the package imports every file in it, so that a new type needs no list to be kept. Layers that open files
live in `fcnproto.data`.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
