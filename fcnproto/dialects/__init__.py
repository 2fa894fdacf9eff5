"""The layer types of Caffe's forks, each a layer class like Caffe's own: one file for each kind of work.

Their settings are in `protos/forks.proto`. Importing the package registers every type in it.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
