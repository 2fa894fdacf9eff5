"""What optimised nets keep from call to call, and how they notice that the weights it was made from have changed.

Torch counts the writes to a tensor, but not those through `.data`, NumPy or another view of the same memory; so the
bits are summed up as well at the start of every call. For the weights that FCN-8s keeps in another form (59 MB) that
takes less than a hundredth of a call's time. On a GPU, where reading such a sum means waiting for all that was launched
before, they are compared one call later (`sums`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from fcnproto.net.locking import Lock
from fcnproto.net.memory import Room
from fcnproto.passes.sums import INTEGERS, LateSums, flat_view

_Kept = TypeVar("_Kept")
_Key = TypeVar("_Key", bound=Hashable)
_Version = tuple[object, ...]
_Signature = tuple[tuple[_Version, object], ...]


class Watch:
    """Groups of tensors, by key, whose changes count.

    One watch serves all plans of a net, so that a layer's derived weights are kept once. Several threads may use it at
    once, also while others write to the tensors: a call may then see some of them changed and others not, but never
    keeps what was made from earlier values for a later call.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._sources: dict[Hashable, Callable[[], Sequence[Tensor]]] = {}
        self._seen: dict[Hashable, _Signature] = {}
        self._generations: dict[Hashable, int] = {}
        self._derived: dict[Hashable, Derived[object]] = {}
        self.room = Room()
        self._factors: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._late = LateSums()

    def add(self, key: Hashable, sources: Callable[[], Sequence[Tensor]]) -> None:
        """Watch the tensors that `sources` names at the time of each look, from now on."""
        with self._lock:
            if key not in self._sources:
                self._seen |= self._signatures({key: sources})
                self._generations[key] = 0
                self._sources[key] = sources

    def generation(self, key: Hashable) -> int:
        """How often `look` has found the tensors of a group changed."""
        return self._generations[key]

    @property
    def changes(self) -> int:
        """How many changes of groups `look` has found in all."""
        with self._lock:
            return sum(self._generations.values())

    def derived(
        self, key: Hashable, make: Callable[[], _Kept], sources: Callable[[], Sequence[Tensor]]
    ) -> Derived[_Kept]:
        """The value called `key`, made from `sources`: one for all who ask for that key."""
        with self._lock:
            if key not in self._derived:
                self.add(key, sources)
                self._derived[key] = Derived(make, self, key)
            return self._derived[key]  # type: ignore[return-value]

    def look(self) -> None:
        """Find out which tensors have been written to, moved or replaced since the last look."""
        with self._lock:  # as a whole: of two looks at once, the one that read earlier must not have the last word
            found = self._signatures(self._sources)
            changed = self._changed_on_gpus()
            for key, signature in found.items():
                if signature != self._seen[key] or any(_place(version) in changed for version, _ in signature):
                    self._generations[key] += 1
            self._seen |= found

    @torch.inference_mode(False)
    @torch.no_grad()
    def _signatures(self, sources: Mapping[Hashable, Callable[[], Sequence[Tensor]]]) -> dict[Hashable, _Signature]:
        # Versions are read once and before the bits: what is written in between shows at the next look.
        groups = {
            key: [(_version(tensor), tensor) for tensor in map(Tensor.detach, name())] for key, name in sources.items()
        }
        different = {
            version: tensor for versions in groups.values() for version, tensor in versions if not tensor.is_cuda
        }
        bits = dict(zip(different, self._fingerprints(list(different.values())), strict=True))
        return {key: tuple((version, bits.get(version)) for version, _ in versions) for key, versions in groups.items()}

    @torch.inference_mode(False)
    @torch.no_grad()
    def _changed_on_gpus(self) -> set[Hashable]:
        """The places of the watched tensors on GPUs that are found changed by now."""
        found = {_version(t): t.detach() for name in self._sources.values() for t in name() if t.is_cuda}
        return self._late.look({_place(v): t for v, t in found.items()}, {_place(v): v for v in found})

    def _fingerprints(self, tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
        """For every tensor the sum of its bits (any one change shows) and a sum with random factors (order shows)."""
        if not tensors:
            return []
        flat = list(map(flat_view, tensors))
        sums = torch.stack([_bit_sum(values) for values in flat])
        products = torch.stack([torch.dot(values, self._random(values)).double() for values in flat])
        both = torch.stack([sums, products.view(torch.int64)])  # as bits: NaN is equal to NaN
        first, second = both.tolist()
        return list(zip(first, second, strict=True))

    def _random(self, like: Tensor) -> Tensor:
        key = (like.dtype, like.device)
        known = self._factors.get(key)
        if known is None or known.numel() < like.numel():
            generator = torch.Generator("cpu").manual_seed(0)
            known = torch.randn(like.numel(), generator=generator, device="cpu").to(like.device, like.dtype)
            self._factors[key] = known
        return known[: like.numel()]


class Derived(Generic[_Kept]):
    """A value made from a watched group of tensors, made anew when they have changed. Holds no gradient."""

    def __init__(self, make: Callable[[], _Kept], watch: Watch, key: Hashable) -> None:
        self._make, self._watch, self._key = make, watch, key
        self._kept: tuple[int, _Kept] | None = None  # with the generation of the tensors that it was made from
        self._lock = Lock()

    @property
    def value(self) -> _Kept:
        """The value for the tensors as the watch saw them last."""
        with self._lock:
            # Asked for before it is made: a change while it is made belongs to the next generation.
            generation = self._watch.generation(self._key)
            if self._kept is None or self._kept[0] != generation:
                # Tensors made in inference mode could not be used in training later on.
                with torch.inference_mode(False), torch.no_grad():
                    self._kept = generation, self._make()
            return self._kept[1]


class Latest(Generic[_Key, _Kept]):
    """Values for the latest keys, at most `most` of them and of `limit` bytes in all (but always the latest one).

    Several threads may ask and keep at once.
    """

    def __init__(self, most: int, limit: int | None = None) -> None:
        self._most, self._limit = most, limit
        self._values: OrderedDict[_Key, tuple[_Kept, int]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: _Key) -> _Kept | None:
        """The value, from now on the latest; None if it isn't kept."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: _Key, value: _Kept, size: int = 0) -> None:
        """Keep a value of `size` bytes; the oldest ones go."""
        with self._lock:
            self._values[key] = (value, size)
            self._values.move_to_end(key)
            while len(self._values) > self._most or (
                self._limit is not None and len(self._values) > 1 and self.size > self._limit
            ):
                self._values.popitem(last=False)

    @property
    def size(self) -> int:
        """Bytes kept."""
        with self._lock:
            return sum(size for _, size in self._values.values())

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._values.clear()


def _version(tensor: Tensor) -> _Version:
    """How often torch saw a tensor written to, and its place."""
    writes = None if tensor.is_inference() else tensor._version
    return writes, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device


def _place(version: _Version) -> _Version:
    return version[1:]


def _bit_sum(flat: Tensor) -> Tensor:
    """The sum of a vector's bits read as whole numbers: 8 bytes at a time (five times as fast), then what remains."""
    step = 8 // flat.element_size()
    whole = 0 if flat.storage_offset() % step else flat.numel() // step * step
    total = flat[whole:].view(INTEGERS[flat.element_size()]).sum()
    return total + flat[:whole].view(torch.int64).sum() if whole else total
