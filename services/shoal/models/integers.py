"""Integer buffers (BatchNorm's counters): not averaged over ranks, they travel as bytes with rank 0's gradient."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from shoal.core.errors import Corrupt
from shoal.models.state import integer_buffers


class IntegerLayout:
    """Names, shapes and dtypes of a model's integer buffers, in the model's own order, end to end in a byte string."""

    def __init__(self, model: nn.Module) -> None:
        self._entries = [
            (name, tuple(buffer.shape), torch.empty(0, dtype=buffer.dtype).numpy().dtype)
            for name, buffer in integer_buffers(model)
        ]
        self.size = sum(math.prod(shape) * dtype.itemsize for _, shape, dtype in self._entries)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(name for name, _, _ in self._entries)

    def pack(self, tensors: Mapping[str, Tensor]) -> bytes:
        """The byte string of tensors by name. Raises KeyError for one that is missing or has another form."""
        packed: list[bytes] = []
        for name, shape, dtype in self._entries:
            array = tensors[name].numpy()
            if (array.shape, array.dtype) != (shape, dtype):
                raise KeyError(name)
            packed.append(array.tobytes())
        return b"".join(packed)

    def capture(self, model: nn.Module) -> bytes:
        """The values as they are now."""
        if not self._entries:  # asking a model for its state costs more than a small step's push
            return b""
        return b"".join(buffer.detach().cpu().numpy().tobytes() for _, buffer in integer_buffers(model))

    def tensors(self, data: bytes) -> dict[str, Tensor]:
        """Raises Corrupt for a byte string of another length."""
        if len(data) != self.size:
            raise Corrupt(f"{len(data)} bytes of integer buffers; the model has {self.size}")
        tensors: dict[str, Tensor] = {}
        offset = 0
        for name, shape, dtype in self._entries:
            array = np.frombuffer(data, dtype=dtype, count=math.prod(shape), offset=offset)
            tensors[name] = torch.from_numpy(array.reshape(shape).copy())
            offset += array.nbytes
        return tensors

    def restore(self, buffers: Mapping[str, Tensor], data: bytes) -> None:
        """Copies the values into the model's buffers, given by name."""
        if self._entries:
            for name, tensor in self.tensors(data).items():
                buffers[name].copy_(tensor)
