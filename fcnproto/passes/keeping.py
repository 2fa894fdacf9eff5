"""What optimised nets keep from call to call, and how they notice that the weights it was made from have changed.

Torch counts the writes to a tensor, but not those through `.data`, NumPy or another view of the same memory; so
`fingerprints` of the bits are taken as well at the start of every call: 2 ms for the weights that FCN-8s keeps in
another form (59 MB). On a GPU, where reading such a sum means waiting for all that was launched
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
from fcnproto.passes.fingerprints import Fingerprints
from fcnproto.passes.sums import LateSums

_Kept = TypeVar("_Kept")
_Key = TypeVar("_Key", bound=Hashable)
_Version = tuple[object, ...]


class Watch:
    """Groups of tensors, by key, whose changes count.

    One watch serves all plans of a net, so that a layer's derived weights are kept once. Several threads may use it at
    once, also while others write to the tensors: a call may then see some of them changed and others not, but never
    keeps what was made from earlier values for a later call.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._sources: dict[Hashable, Callable[[], Sequence[Tensor]]] = {}
        self._seen: dict[Hashable, list[_Version]] = {}
        self._generations: dict[Hashable, int] = {}
        self._changes = 0
        self._derived: dict[Hashable, Derived[object]] = {}
        self._bits: dict[_Version, tuple[Tensor, Tensor]] = {}
        self._fingerprints: tuple[list[_Version], Fingerprints] | None = None
        self._taken: Tensor | None = None
        self._has_gpus = False
        self.room = Room()
        self._late = LateSums()

    def add(self, key: Hashable, sources: Callable[[], Sequence[Tensor]]) -> None:
        """Watch the tensors that `sources` names at the time of each look, from now on."""
        if key in self._sources:
            return
        with self._lock, torch.inference_mode(False), torch.no_grad():
            if key in self._sources:
                return
            tensors = sources()
            versions = [_version(tensor) for tensor in tensors]
            places = map(_place, versions)
            new = {p: t for p, t in zip(places, tensors, strict=True) if p not in self._bits and not t.is_cuda}
            prints = Fingerprints(list(new.values()))
            self._bits |= _by_place(prints, list(new), prints.take())
            self._seen[key], self._generations[key], self._sources[key] = versions, 0, sources
            self._taken = None

    def generation(self, key: Hashable) -> int:
        """How often `look` has found the tensors of a group changed."""
        return self._generations[key]

    @property
    def changes(self) -> int:
        """How many changes of groups `look` has found in all."""
        return self._changes

    def derived(
        self,
        key: Hashable,
        make: Callable[[], _Kept],
        sources: Callable[[], Sequence[Tensor]],
        group: Hashable | None = None,
    ) -> Derived[_Kept]:
        """The value called `key`, made from `sources`: one for all who ask for that key.

        Values made from the same tensors say so by the same `group`, which is the key unless it is given.
        """
        with self._lock:
            if key not in self._derived:
                group = key if group is None else group
                self.add(group, sources)
                self._derived[key] = Derived(make, self, group)
            return self._derived[key]  # type: ignore[return-value]

    def drop(self, key: Hashable) -> None:
        """Free the value called `key`, if there is one; whoever asks for it again has it made anew."""
        with self._lock:
            derived = self._derived.get(key)
        if derived is not None:
            derived.drop()

    def look(self) -> None:
        """Find out which tensors have been written to, moved or replaced since the last look."""
        if not self._sources:
            return
        # As a whole: of two looks at once, the one that read earlier must not have the last word.
        with self._lock, torch.inference_mode(False), torch.no_grad():
            # Versions are read once and before the bits: what is written in between shows at the next look.
            groups = {key: name() for key, name in self._sources.items()}
            seen = {key: [_version(tensor) for tensor in tensors] for key, tensors in groups.items()}
            if not self._is_as_seen(seen):
                self._compare(groups, seen)

    def _is_as_seen(self, seen: Mapping[Hashable, Sequence[_Version]]) -> bool:
        """Whether nothing at all has changed, which is the rule and found out quickly."""
        known, taken = self._fingerprints, self._taken
        if self._has_gpus or known is None or taken is None or seen != self._seen:
            return False
        return torch.equal(known[1].take(), taken)

    def _compare(self, groups: Mapping[Hashable, Sequence[Tensor]], seen: dict[Hashable, list[_Version]]) -> None:
        """Find the groups that have changed, one tensor after the other."""
        tensors = {
            version: tensor
            for key, versions in seen.items()
            for version, tensor in zip(versions, groups[key], strict=True)
        }
        on_gpus = {version: tensor for version, tensor in tensors.items() if tensor.is_cuda}
        self._has_gpus = bool(on_gpus)
        changed = self._changed_on_gpus(on_gpus)
        changed |= self._changed_bits({_place(v): t for v, t in tensors.items() if not t.is_cuda})
        for key, versions in seen.items():
            if versions != self._seen[key] or not changed.isdisjoint(map(_place, versions)):
                self._generations[key] += 1
                self._changes += 1
        self._seen = seen

    def _changed_bits(self, tensors: Mapping[_Version, Tensor]) -> set[Hashable]:
        """The places among those of `tensors` whose bits are others than they were."""
        places = list(tensors)
        known = self._fingerprints
        if known is None or known[0] != places:
            known = places, Fingerprints(list(tensors.values()))
            self._fingerprints = known if known[1].is_lasting else None
        self._taken = known[1].take().clone()
        known_bits, self._bits = self._bits, _by_place(known[1], places, self._taken)
        return {
            place
            for place, found in self._bits.items()
            if place in known_bits and not all(map(torch.equal, found, known_bits[place]))
        }

    def _changed_on_gpus(self, tensors: Mapping[_Version, Tensor]) -> set[Hashable]:
        """The places of the watched tensors on GPUs that are found changed by now."""
        return self._late.look({_place(v): t.detach() for v, t in tensors.items()}, {_place(v): v for v in tensors})


def _by_place(prints: Fingerprints, places: Sequence[_Version], taken: Tensor) -> dict[_Version, tuple[Tensor, Tensor]]:
    """The fingerprints that were taken of the tensors at these places."""
    return {place: prints.of(index, taken) for index, place in enumerate(places)}


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

    def drop(self) -> None:
        """Free the value; it is made anew when it is asked for."""
        with self._lock:
            self._kept = None


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


def _version(t: Tensor) -> _Version:
    """How often torch saw a tensor written to, and its place."""
    return None if t.is_inference() else t._version, t.data_ptr(), t.shape, t.stride(), t.dtype, t.device


def _place(version: _Version) -> _Version:
    return version[1:]
