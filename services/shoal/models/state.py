"""A model's state by name: what the shards hold, what goes into the saved folder, and the way back. Imports torch."""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from shoal.core.errors import InvalidInput
from shoal.core.layout import Layer, LayerKind


def layers_of(model: nn.Module) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:
    """(trainable parameters, float buffers) in the model's own order: what `core.layout.flatten` takes.

    Only persistent buffers count; integer ones are `integer_buffers`. A parameter that is used twice stands once,
    under its first name. Raises InvalidInput for a parameter or float buffer that is not float32.
    """
    parameters = tuple(
        _layer(name, parameter, LayerKind.PARAMETER)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    )
    buffers = tuple(
        _layer(name, buffer, LayerKind.BUFFER)
        for name, buffer in _persistent_buffers(model)
        if buffer.is_floating_point()
    )
    return parameters, buffers


def integer_buffers(model: nn.Module) -> tuple[tuple[str, torch.Tensor], ...]:
    """(name, the buffer itself) of each persistent buffer that is not float, such as BatchNorm's
    num_batches_tracked, in the model's own order. They are not averaged over ranks: rank 0's are taken.
    """
    return tuple((name, buffer) for name, buffer in _persistent_buffers(model) if not buffer.is_floating_point())


def tensors_of(model: nn.Module) -> dict[str, npt.NDArray[np.generic]]:
    """A copy of the model's state_dict as numpy arrays: what `folder.write_folder` takes."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in model.state_dict().items()}


def load_tensors(model: nn.Module, tensors: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Copies tensors into the model in place. Raises InvalidInput, before anything changes, if names, shapes or dtypes
    are not exactly the model's.
    """
    state: dict[str, torch.Tensor] = model.state_dict()
    if missing := sorted(state.keys() - tensors.keys()):
        raise InvalidInput(f"the saved weights lack {', '.join(missing[:3])} ({len(missing)} missing)")
    if unknown := sorted(tensors.keys() - state.keys()):
        raise InvalidInput(f"the model has no {', '.join(unknown[:3])} ({len(unknown)} unknown)")
    given = {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}
    for name, tensor in state.items():
        if (given[name].shape, given[name].dtype) != (tensor.shape, tensor.dtype):
            raise InvalidInput(
                f"{name}: the saved weights have {tuple(given[name].shape)} {given[name].dtype}, "
                f"the model has {tuple(tensor.shape)} {tensor.dtype}"
            )
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(given[name])


def _layer(name: str, tensor: torch.Tensor, kind: LayerKind) -> Layer:
    if tensor.dtype != torch.float32:
        raise InvalidInput(f"{kind} {name} is {tensor.dtype}; models are trained in float32", field="model")
    return Layer(name=name, shape=tuple(tensor.shape), kind=kind)


def _persistent_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    saved = model.state_dict(keep_vars=True)
    return ((name, buffer) for name, buffer in model.named_buffers() if name in saved)
