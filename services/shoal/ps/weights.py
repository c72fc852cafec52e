"""One shard's slices of a model: the weights of two versions, the optimizer's state, and how one makes the next.

Version v lies in the even or the odd buffer; version v + 1 comes into being in the other one, so v stays as it is
until v + 2 is made (the replay window). Not thread-safe: `share.py` holds a lock.
"""

import math
import os
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from shoal.core.exact import expansion
from shoal.core.layout import PAGE, LayerKind, Slice
from shoal.core.layout import Share as Range
from shoal.optim.clipping import page_square_sums
from shoal.optim.config import OptimizerConfig
from shoal.optim.rules import AlternatingOptimizer
from shoal.wire.exchange.memory import ELEMENT_BYTES, FlatSpace, FloatArray, create_shared


class Room:
    """Memory for a copy of a shard's weights and optimizer state: touched, so that filling it is a memcpy."""

    def __init__(self, elements: int, states: Sequence[Mapping[str, tuple[torch.Size, torch.dtype]]]) -> None:
        self.flat = torch.empty(elements).zero_()
        self.states = [
            {key: torch.empty(shape, dtype=dtype).zero_() for key, (shape, dtype) in state.items()} for state in states
        ]


class Weights:
    """`flat[p]` and `arrays[p]` are the buffer of versions with parity p, float32 [held.length], in shared memory.

    They begin with the model's values, or with zeros to be loaded over if it is an outline.
    """

    def __init__(self, *, model: nn.Module, held: Range, optimizer: OptimizerConfig) -> None:
        self.held = held
        self.descriptors = (create_shared("shoal-even", held.length), create_shared("shoal-odd", held.length))
        # Not at the drop: a handshake may be handing them out just then. Without this the memory is never freed.
        for fd in self.descriptors:
            weakref.finalize(self, os.close, fd)
        self.arrays = (self._map(0), self._map(1))
        self.flat = (torch.from_numpy(self.arrays[0]), torch.from_numpy(self.arrays[1]))
        state = model.state_dict()
        if not any(tensor.is_meta for tensor in state.values()):
            self.load({p.layer.name: state[p.layer.name].reshape(-1)[p.first : p.last] for p in held.slices})
        self._trained = [piece for piece in held.slices if piece.layer.kind is LayerKind.PARAMETER]
        self._statistics = [piece for piece in held.slices if piece.layer.kind is LayerKind.BUFFER]
        # Parameters come first in the flat vector; what is behind this is statistics.
        self._trained_stop = max((-(-_where(piece).stop // PAGE) * PAGE for piece in self._trained), default=0)
        even, odd = ([nn.Parameter(_view(flat, piece)) for piece in self._trained] for flat in self.flat)
        self._optimizer = AlternatingOptimizer(optimizer, even, odd) if self._trained else None
        self._views: dict[int, list[Tensor]] = {}

    @property
    def size(self) -> int:
        """Bytes of both versions."""
        return 2 * ELEMENT_BYTES * self.held.length

    def advance(self, version: int, gradient: Tensor, learning_rate: float) -> None:
        """Makes version + 1 of everything; `gradient` is float32 [held.length], with the new statistics in it."""
        new = self.flat[(version + 1) % 2]
        new.copy_(self.flat[version % 2])
        if self._optimizer is not None:
            self._optimizer.step(version, self._views_of(gradient), learning_rate)
        for piece in self._statistics:
            new[_where(piece)].copy_(gradient[_where(piece)])

    def advance_slice(self, piece: Slice, version: int, gradient: Tensor, learning_rate: float) -> None:
        """Makes version + 1 of one slice; `gradient` is float32 [piece.elements]."""
        new = self.flat[(version + 1) % 2][_where(piece)]
        new.copy_(self.flat[version % 2][_where(piece)])
        if piece.layer.kind is LayerKind.BUFFER:
            new.copy_(gradient)
            return
        assert self._optimizer is not None
        shaped = gradient.view(piece.layer.shape) if piece.elements == piece.layer.elements else gradient
        grads = [shaped if other is piece else None for other in self._trained]
        self._optimizer.step(version, grads, learning_rate)

    def slice_at(self, piece: Slice, version: int) -> Tensor:
        """A view, float32 [piece.elements]."""
        return self.flat[version % 2][_where(piece)]

    def room(self) -> Callable[[], Room]:
        """Makes room for a copy of what there is now; to be called where nobody waits, for it touches all memory."""
        states = [{key: (tensor.shape, tensor.dtype) for key, tensor in state.items()} for state in self._states]
        return lambda: Room(self.held.length, states)

    def copy_into(self, room: Room, version: int) -> None:
        """The whole shard, which is at this version."""
        room.flat.copy_(self.flat[version % 2])
        for state, into in zip(self._states, room.states, strict=True):
            _copy_state(state, into)

    def copy_slice_into(self, room: Room, piece: Slice, version: int) -> None:
        """One slice, which is at this version."""
        room.flat[_where(piece)].copy_(self.flat[version % 2][_where(piece)])
        if piece.layer.kind is LayerKind.PARAMETER:
            index = self._trained.index(piece)
            _copy_state(self._states[index], room.states[index])

    def optimizer_of(self, room: Room) -> dict[str, Mapping[str, Tensor]]:
        """A copy's optimizer state by layer."""
        return {piece.layer.name: state for piece, state in zip(self._trained, room.states, strict=True) if state}

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Takes each slice's elements, float32 [piece.elements] by layer name, as both versions."""
        for piece in self.held.slices:
            self.flat[0][_where(piece)].copy_(values[piece.layer.name].reshape(-1))
        self.flat[1].copy_(self.flat[0])

    def load_optimizer(self, states: Mapping[str, Mapping[str, Tensor]], *, fresh: Collection[str]) -> None:
        """Takes over the state by layer name; `fresh`: layers that have had no update yet."""
        if self._optimizer is not None:
            self._optimizer.restore(
                [states.get(piece.layer.name, {}) for piece in self._trained],
                fresh={index for index, piece in enumerate(self._trained) if piece.layer.name in fresh},
            )

    @property
    def _states(self) -> tuple[Mapping[str, Tensor], ...]:
        return self._optimizer.states if self._optimizer is not None else ()

    def squares(self, gradient: Tensor) -> tuple[float, ...]:
        """The trained elements' sum of squares as an exact expansion (`core.exact`)."""
        return expansion(page_square_sums(gradient[: self._trained_stop]).tolist())

    def scale(self, gradient: Tensor, factor: float) -> None:
        """Multiplies the trained elements' gradient, in place; statistics stay."""
        gradient[: self._trained_stop].mul_(factor)

    def forget_buffers(self) -> None:
        """Lets go of gradient buffers whose session may be gone; those that go on are looked up again."""
        self._views.clear()

    def _map(self, parity: int) -> FloatArray:
        space = FlatSpace(self.held.length)
        space.map_shared(0, self.held.length, self.descriptors[parity], writable=True)
        return space.array()

    def _views_of(self, gradient: Tensor) -> list[Tensor]:
        """A session's buffer by slices, kept: making the views costs more than a small step."""
        key = gradient.data_ptr()
        views = self._views.get(key)
        if views is None:
            views = self._views[key] = [_view(gradient, piece) for piece in self._trained]
        return views


def is_finite(values: Tensor) -> bool:
    """One pass without a temporary: aminmax hands NaN on and shows both infinities."""
    low, high = torch.aminmax(values)
    return math.isfinite(low) and math.isfinite(high)


def _copy_state(state: Mapping[str, Tensor], into: dict[str, Tensor]) -> None:
    for key, tensor in state.items():
        if key in into:
            into[key].copy_(tensor)
        else:
            into[key] = tensor.clone(memory_format=torch.contiguous_format)


def _where(piece: Slice) -> slice:
    return slice(piece.offset, piece.offset + piece.elements)


def _view(flat: Tensor, piece: Slice) -> Tensor:
    view = flat[_where(piece)]
    return view.view(piece.layer.shape) if piece.elements == piece.layer.elements else view
