"""Where each element of a model's state lies: one flat vector, cut into one contiguous range per shard.

The flat vector holds every layer (trainable parameter), last layer first, so that the backward pass fills it front
to back, and behind them the float buffers (BatchNorm's running statistics). Each layer starts on a page of
`PAGE` = 1,024 float32 elements = 4,096 bytes:

* a shard boundary at a page boundary never moves an element between the vector body and the scalar tail of a
  kernel, where a fused multiply-add may round differently, so the number of shards cannot show in the bits;
* ranges of different shards can be mapped side by side into one address space, so a layer that is cut still is one
  contiguous tensor in the trainer.

Shards get contiguous ranges with equal numbers of elements, to within one page.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from shoal.core.errors import InvalidInput

PAGE = 1024  # float32 elements: 4 KiB, the page size of x86-64 and the least on AArch64


class LayerKind(StrEnum):
    PARAMETER = "parameter"  # trained: updated by the optimizer
    BUFFER = "buffer"  # float statistics: averaged over ranks at each step


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A named tensor of the model, float32."""

    name: str
    shape: tuple[int, ...]
    kind: LayerKind = LayerKind.PARAMETER

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def pages(self) -> int:
        return -(-self.elements // PAGE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """Elements [first, last) of one layer, at [offset, offset + last - first) of its shard's buffer."""

    layer: Layer
    first: int
    last: int
    offset: int  # elements, a multiple of PAGE

    @property
    def elements(self) -> int:
        return self.last - self.first


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one shard holds: the elements [start, stop) of the flat vector, multiples of PAGE, and the slices there."""

    index: int
    start: int
    stop: int
    slices: tuple[Slice, ...]

    @property
    def length(self) -> int:
        """Elements of the shard's buffer, padding included."""
        return self.stop - self.start

    @cached_property
    def by_name(self) -> dict[str, Slice]:
        return {piece.layer.name: piece for piece in self.slices}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The whole flat vector and its partition. Two sides that build it from equal input agree on every offset."""

    layers: tuple[Layer, ...]  # in the order of the flat vector
    offsets: tuple[int, ...]  # elements; of each layer
    length: int  # elements, a multiple of PAGE
    shares: tuple[Share, ...]  # one per shard; those with length 0 take no part in the job

    @property
    def active(self) -> tuple[Share, ...]:
        """The shares that hold anything, shard 0 first. A model of few pages leaves the last ones empty."""
        return tuple(share for share in self.shares if share.length)


def flatten(*, parameters: tuple[Layer, ...], buffers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The order of the flat vector: parameters, last one first, then buffers. Input in the model's own order."""
    return (*reversed(parameters), *buffers)


def partition(layers: tuple[Layer, ...], *, shards: int, whole: bool = False) -> Layout:
    """Cuts the flat vector into `shards` contiguous ranges with equal numbers of elements, to within a page.

    `whole` keeps each layer on one shard, for update rules that need the whole tensor (Muon, Adafactor); the shares
    are then as equal as the layers allow. Raises InvalidInput for repeated names or an empty model.
    """
    if shards < 1:
        raise InvalidInput(f"shards must be at least 1, not {shards}", field="resources.shards")
    names = [layer.name for layer in layers]
    if len(set(names)) != len(names):
        raise InvalidInput(f"layer names repeat: {sorted({n for n in names if names.count(n) > 1})}")
    if not any(layer.elements for layer in layers):
        raise InvalidInput("the model has no parameters")
    offsets: list[int] = []
    length = 0
    for layer in layers:
        offsets.append(length)
        length += layer.pages * PAGE
    cuts = _cuts(layers, offsets, length, shards, whole)
    shares = tuple(
        Share(index=k, start=cuts[k], stop=cuts[k + 1], slices=_slices(layers, offsets, cuts[k], cuts[k + 1]))
        for k in range(shards)
    )
    return Layout(layers=layers, offsets=tuple(offsets), length=length, shares=shares)


def _cuts(layers: tuple[Layer, ...], offsets: list[int], length: int, shards: int, whole: bool) -> list[int]:
    """The shards' boundaries in the flat vector, `shards` + 1 of them."""
    total = sum(layer.elements for layer in layers)
    cuts = [0]
    for k in range(1, shards):
        target = total * k / shards  # real elements that should lie in front of this cut
        passed = 0
        cut = length
        for layer, offset in zip(layers, offsets, strict=True):
            if passed + layer.elements < target:
                passed += layer.elements
                continue
            if whole:  # the nearer end of the layer
                in_front = target - passed <= passed + layer.elements - target
                cut = offset if in_front else offset + layer.pages * PAGE
            else:
                cut = min(offset + round((target - passed) / PAGE) * PAGE, offset + layer.pages * PAGE)
            break
        cuts.append(max(cut, cuts[-1]))
    used = sorted({*cuts, length})
    return used + [length] * (shards + 1 - len(used))  # empty shares come last: shard 0 always holds something


def _slices(layers: tuple[Layer, ...], offsets: list[int], start: int, stop: int) -> tuple[Slice, ...]:
    slices: list[Slice] = []
    for layer, offset in zip(layers, offsets, strict=True):
        first = max(start - offset, 0)
        last = min(stop - offset, layer.elements)
        if first < last:
            slices.append(Slice(layer=layer, first=first, last=last, offset=offset + first - start))
    return tuple(slices)
