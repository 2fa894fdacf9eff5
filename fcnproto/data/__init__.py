"""All that opens files: the data layers, image transforms, and the tools around them.

Importing this package registers the data layers.
"""

from fcnproto.data import (
    annotated,
    database,
    folder_layer,
    hdf5,
    image_data,
    labelled_images,
    memory,
    published,
    python,
    window_data,
)
from fcnproto.data.python_layer import PythonBlob, PythonLayer, register_python_layer

__all__ = ["PythonBlob", "PythonLayer", "register_python_layer"]
