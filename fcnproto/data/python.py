"""The layer type Python: finds the class that the prototxt names and runs it by pycaffe's protocol."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fcnproto.data.python_faults import fault_line
from fcnproto.data.python_layer import (
    Phase,
    PythonBlob,
    PythonBlobs,
    PythonLayer,
    plain_attributes,
    registered_python_layer,
)
from fcnproto.data.python_modules import import_python_module, provide_caffe
from fcnproto.errors import Error, FcnprotoWarning, LayerError
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.registry import register
from fcnproto.schema import caffe_pb2


@register("Python")
class Python(Layer):
    """Caffe's Python: a layer of the user's own, named by module and class in `python_param`.

    A class registered under these names (`register_python_layer`) is used as it is; otherwise the module is imported,
    which takes `allow_python`. A class of pycaffe's protocol runs on float32 CPU copies of the bottoms, its `backward`
    as an autograd function; where the class is a `fcnproto.Layer`, this layer becomes an instance of it.
    """

    differences = (
        "modules are imported only with `allow_python`. Bottoms and tops are float32 CPU copies, so that a layer can't "
        "change its inputs. The published FCN data layers and py-faster-rcnn's proposals and targets are built in. In "
        "several processes each has its own layer (Caffe's command line refuses them)."
    )
    config_field = "python_param"
    bottoms = (0, None)
    tops = (0, None)

    def __init__(self, param: caffe_pb2.LayerParameter, num_tops: int | None = None) -> None:
        super().__init__(param, num_tops)
        self.instance: Any = None
        self.is_data = not param.bottom  # type: ignore[misc]
        cls = registered_python_layer(self.config.module, self.config.layer)
        if cls is not None and issubclass(cls, Layer):
            self._become(cls)

    def _become(self, cls: type[Layer]) -> None:
        """Turn into a layer of class `cls`, keeping what the net has set."""
        names = ("base_dir", "prototxt", "allow_python", "allow_writes", "dialect", "training")
        kept = {name: getattr(self, name) for name in names}
        cls.type = cls.type or "Python"
        self.__class__ = cls  # type: ignore[assignment]
        cls.__init__(self, self.param, self.num_tops)
        if self.config_field != "python_param":
            self.also_reads = (*cls.also_reads, "python_param")  # type: ignore[misc]
        for name, value in kept.items():
            setattr(self, name, value)

    def withheld(self) -> str:
        module, name = self.config.module, self.config.layer
        if self.allow_python or registered_python_layer(module, name) is not None:
            return ""
        return f"layer {self.name!r} ({self.type}): {self._needs_permission()}"

    def _needs_permission(self) -> str:
        module, name = self.config.module, self.config.layer
        return (
            f"{module}.{name} is not a registered Python layer; if you trust the module {module!r}, allow its "
            "import with allow_python=True (--allow-python)"
        )

    @contextmanager
    def _user_code(self, method: str, loading: bool = False) -> Iterator[None]:
        """What a method of the user's runs under: tensors are made on the CPU; what it raises becomes a `LayerError`
        that names the layer and the place in the user's code (and the prototxt, which loading adds itself)."""
        try:
            with torch.device("cpu"):
                yield
        except Error:
            raise
        except Exception as error:
            file = f"{self.prototxt}: " if self.prototxt and not loading else ""
            called = f"{self.config.module}.{self.config.layer}.{method}"
            raise LayerError(
                f"{file}layer {self.name!r} ({self.type}): its {called} failed at {fault_line(error)}"
            ) from error

    # Loading.

    def setup(self, shapes: Sequence[Shape]) -> None:
        if self.config.HasField("share_in_parallel"):
            text = f"layer {self.name!r} (Python): share_in_parallel has no effect; each process has its own layer"
            warnings.warn(text, FcnprotoWarning, stacklevel=2)
        cls = self._find_class()
        if issubclass(cls, Layer):
            self._become(cls)
            self.setup(shapes)
            return
        provide_caffe()
        with self._user_code("__init__", loading=True):
            self.instance = self._make_instance(cls)
        self._must_have(cls, "setup")
        self.bottom_blobs = [PythonBlob(shape) for shape in shapes]
        self.top_blobs = [self._top_blob(j) for j in range(self.num_tops)]
        with self._user_code("setup", loading=True):
            self.instance.setup(self.bottom_blobs, self.top_blobs)
        self._must_have(cls, "reshape", "forward")
        with self._user_code("reshape", loading=True):
            self.instance.reshape(self.bottom_blobs, self.top_blobs)
        self._take_blobs()

    def _find_class(self) -> type:
        module, name = self.config.module, self.config.layer
        cls = registered_python_layer(module, name)
        if cls is not None:
            return cls
        if not self.allow_python:
            self.fail(self._needs_permission())
        try:
            found = getattr(import_python_module(module, self.base_dir), name, None)
        except Exception as error:
            # The module is missing (nothing of it ran), or its own code failed.
            if isinstance(error, ModuleNotFoundError) and error.name in (module, module.partition(".")[0]):
                self.fail(f"module {module!r} can't be imported: {error}")
            raise LayerError(
                f"layer {self.name!r} ({self.type}): module {module!r} can't be imported: {fault_line(error)}"
            ) from error
        if not isinstance(found, type):
            self.fail(f"module {module!r} has no class {name!r}")
        return found

    def _make_instance(self, cls: type) -> Any:
        if issubclass(cls, PythonLayer):
            instance: Any = cls(self.param)
        else:
            # A class that derives from the caffe.Layer of a real pycaffe can't be made from Python in the usual way,
            # nor can its `blobs` be set: that is what the subclass is for.
            kind: Any = type(cls)
            derived = kind(cls.__name__, (cls,), {"blobs": None, "__module__": cls.__module__})
            instance = derived.__new__(derived)
        instance.blobs = PythonBlobs()
        instance.param_str = self.config.param_str
        instance.phase = self._phase()
        instance.base_dir = self.base_dir
        return instance

    def _must_have(self, cls: type, *methods: str) -> None:
        for method in methods:
            if self._lacks(method):
                self.fail(f"{cls.__module__}.{cls.__name__} has no method {method}")

    def _lacks(self, method: str) -> bool:
        own = getattr(type(self.instance), method, None)
        return own is None or (method != "setup" and own is getattr(PythonLayer, method))

    def _phase(self) -> Phase:
        return Phase(caffe_pb2.TRAIN if self.training else caffe_pb2.TEST)

    def _top_blob(self, index: int) -> PythonBlob:
        """The blob of a top: the bottom's own where the layer works in place."""
        names = self.param.bottom
        if index < len(names) and names[index] == self.param.top[index]:
            return self.bottom_blobs[index]
        return PythonBlob()

    def _take_blobs(self) -> None:
        """Make the blobs that the user's setup added parameters of this layer, with the values it gave them."""
        given = bool(self.param.blobs)
        for index, blob in enumerate(self.instance.blobs):
            self.add_blob(f"blob{index}", blob.shape)
            if not given:
                proto = self.param.blobs.add(data=blob.data.ravel().tolist())
                proto.shape.dim.extend(blob.shape)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        for blob, shape in zip(self.bottom_blobs, shapes, strict=True):
            blob.reshape(*shape)
        with self._user_code("reshape", loading=True):
            self.instance.reshape(self.bottom_blobs, self.top_blobs)
        return [blob.shape for blob in self.top_blobs]

    # Running.

    def forward(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
        blobs = [self.blob(index) for index in range(len(self.blob_names))]
        tops: tuple[Tensor, ...]
        if bottoms or blobs:
            tops = _Run.apply(self, len(bottoms), *bottoms, *blobs)
        else:
            tops = tuple(self.run_forward((), ()))
        return tops[0] if len(tops) == 1 and not self.is_data else tops

    def run_forward(self, bottoms: Sequence[Tensor], blobs: Sequence[Tensor]) -> list[Tensor]:
        """The tops' values from the bottoms' and the parameters'; all float32 CPU tensors."""
        for blob, value in zip(self.bottom_blobs, bottoms, strict=True):
            blob.tensor = value
        for blob, value in zip(self.instance.blobs, blobs, strict=True):
            blob.tensor = value
        self.instance.phase = self._phase()
        with self._user_code("reshape"):
            self.instance.reshape(self.bottom_blobs, self.top_blobs)
        with self._user_code("forward"):
            self.instance.forward(self.bottom_blobs, self.top_blobs)
        return [blob.tensor.clone() for blob in self.top_blobs]

    def run_backward(
        self, values: Sequence[Sequence[Tensor]], gradients: Sequence[Tensor], wanted: Sequence[bool]
    ) -> list[Tensor]:
        """The gradients of the bottoms and the parameters.

        `values`: the bottoms', tops' and parameters' values of that forward; `wanted`: which bottoms need a gradient.
        """
        for blobs, tensors in zip((self.bottom_blobs, self.top_blobs, self.instance.blobs), values, strict=True):
            for blob, tensor in zip(blobs, tensors, strict=True):
                blob.tensor = tensor
                blob.gradient.zero_()
        for blob, gradient in zip(self.top_blobs, gradients, strict=True):
            blob.gradient.copy_(gradient)
        self._check_backward()
        with self._user_code("backward"):
            self.instance.backward(self.top_blobs, list(wanted), self.bottom_blobs)
        return [blob.gradient.clone() for blob in (*self.bottom_blobs, *self.instance.blobs)]

    # Running on blobs that live elsewhere: pycaffe's own protocol, without autograd.

    def live_on(self, bottoms: Sequence[Any], tops: Sequence[Any], blobs: list[Any]) -> None:
        """Work on these blobs from now on (with pycaffe's attributes): those of a net, and its parameters."""
        self.bottom_blobs, self.top_blobs, self.instance.blobs = list(bottoms), list(tops), blobs

    def run_live(self) -> None:
        """One forward pass on the blobs given to `live_on`."""
        self.instance.phase = self._phase()
        with self._user_code("reshape"):
            self.instance.reshape(self.bottom_blobs, self.top_blobs)
        with self._user_code("forward"):
            self.instance.forward(self.bottom_blobs, self.top_blobs)

    def run_live_backward(self, wanted: Sequence[bool]) -> None:
        """One backward pass on them; `wanted` says which bottoms need a gradient."""
        self._check_backward()
        with self._user_code("backward"):
            self.instance.backward(self.top_blobs, list(wanted), self.bottom_blobs)

    def _check_backward(self) -> None:
        if self._lacks("backward"):
            self.fail("has no method backward, but a gradient is asked for; set propagate_down to false or write one")

    # Copies and positions.

    def get_position(self) -> dict[str, Any]:
        """What says where a source of data stands; see `PythonLayer.get_position`."""
        own = getattr(self.instance, "get_position", None)
        with self._user_code("get_position"):
            return dict(own() if own is not None else plain_attributes(self.instance))

    def set_position(self, position: dict[str, Any]) -> None:
        """Go to a position that `get_position` gave."""
        own = getattr(self.instance, "set_position", None)
        if own is not None:
            with self._user_code("set_position"):
                own(position)
        else:
            self.instance.__dict__.update(position)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if self.instance is not None:
            state["instance"] = vars(self.instance)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        attributes = state["instance"]
        super().__setstate__({**state, "instance": None})
        if attributes is not None:  # the class may come from a module that pickle can't find by itself
            self.instance = self._make_instance(self._find_class())
            self.instance.__dict__.update(attributes)


def _local(value: Tensor) -> Tensor:
    """A float32 CPU copy that the user's code may write to."""
    return value.detach().to(device="cpu", dtype=torch.float32, copy=True).contiguous()


class _Run(torch.autograd.Function):
    """One run of a Python layer as autograd sees it: inputs are the bottoms, then the parameters."""

    @staticmethod
    def forward(ctx: Any, layer: Python, num_bottoms: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        bottoms = [_local(tensor) for tensor in tensors[:num_bottoms]]
        blobs = [_local(tensor) for tensor in tensors[num_bottoms:]]
        before = [blob.clone() for blob in blobs]
        tops = layer.run_forward(bottoms, blobs)
        for blob, old, tensor in zip(blobs, before, tensors[num_bottoms:], strict=True):
            if not torch.equal(blob, old):
                tensor.detach().copy_(blob)
        ctx.layer, ctx.num_bottoms = layer, num_bottoms
        ctx.values = (bottoms, tops, blobs)
        ctx.like = [(tensor.device, tensor.dtype) for tensor in tensors]
        device, dtype = ctx.like[0]
        return tuple(top.to(device=device, dtype=dtype if dtype.is_floating_point else None, copy=True) for top in tops)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[2 : 2 + ctx.num_bottoms]
        results = ctx.layer.run_backward(ctx.values, [_local(gradient) for gradient in gradients], wanted)
        needed = ctx.needs_input_grad[2:]
        return (None, None) + tuple(
            result.to(device=device, dtype=dtype) if need else None
            for result, (device, dtype), need in zip(results, ctx.like, needed, strict=True)
        )
