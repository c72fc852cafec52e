"""A model whose parameters are the shards' weights and whose gradients go straight into the exchange's buffers."""

import torch
from torch import Tensor, nn

from shoal.core.layout import Layer, LayerKind, Layout
from shoal.models.integers import IntegerLayout
from shoal.models.state import integer_buffers


class Replica:
    """One copy of the model on one device.

    On the CPU the model's parameters *are* the flat vector (views of it); elsewhere they are copies, refreshed at
    each version. `flat` is float32 [layout.length] throughout. `in_place` says which; by default the device does.
    """

    def __init__(self, model: nn.Module, layout: Layout, *, device: torch.device, in_place: bool | None = None) -> None:
        self.model = model.to(device)
        self.model.train()
        self.device = device
        self.integer_layout = IntegerLayout(model)
        self._in_place = device.type == "cpu" if in_place is None else in_place
        where = dict(zip(layout.layers, layout.offsets, strict=True))
        named = dict(model.named_parameters())
        buffers = dict(model.named_buffers())
        self._parameters: list[tuple[nn.Parameter, Layer, int]] = []
        self._statistics: list[tuple[Tensor, Layer, int]] = []
        for layer, offset in where.items():
            if layer.kind is LayerKind.PARAMETER:
                self._parameters.append((named[layer.name], layer, offset))
            else:
                self._statistics.append((buffers[layer.name], layer, offset))
        self._integers = dict(integer_buffers(model))
        self._views: dict[int, tuple[list[Tensor], list[Tensor]]] = {}

    def load(self, flat: Tensor, integers: bytes) -> None:
        """Takes the weights of one version."""
        parameter_views, _ = self._views_of(flat)
        for (parameter, _, _), view in zip(self._parameters, parameter_views, strict=True):
            if self._in_place:
                parameter.data = view
            else:
                with torch.no_grad():
                    parameter.copy_(view)
        self.reset_statistics(flat, integers)

    def reset_statistics(self, flat: Tensor, integers: bytes) -> None:
        """The buffers as they are at the version: each rank's forward starts from them."""
        if not self._statistics and not self._integers:
            return
        _, statistic_views = self._views_of(flat)
        with torch.no_grad():
            for (buffer, _, _), view in zip(self._statistics, statistic_views, strict=True):
                buffer.copy_(view)
            self.integer_layout.restore(self._integers, integers)

    def write_contribution(self, out: Tensor, scale: float) -> None:
        """Puts scale * gradient and scale * statistics into the flat buffer `out`, and forgets the gradients."""
        parameter_views, statistic_views = self._views_of(out)
        with torch.no_grad():
            for (parameter, _, _), view in zip(self._parameters, parameter_views, strict=True):
                gradient, parameter.grad = parameter.grad, None
                if gradient is None:
                    view.zero_()
                elif scale == 1.0 or not self._in_place:
                    view.copy_(gradient if scale == 1.0 else gradient.mul_(scale))
                else:
                    torch.mul(gradient, scale, out=view)  # one pass over memory
            for (buffer, _, _), view in zip(self._statistics, statistic_views, strict=True):
                view.copy_(buffer).mul_(scale)

    def tensors(self) -> dict[str, Tensor]:
        """Every layer and integer buffer by name, on the CPU: the model's state at the version loaded."""
        named = {layer.name: tensor.detach().cpu() for tensor, layer, _ in (*self._parameters, *self._statistics)}
        named.update({name: buffer.cpu() for name, buffer in self._integers.items()})
        return named

    def _views_of(self, flat: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """(parameters, statistics) as views of a flat buffer, kept: there are only a few buffers."""
        key = flat.data_ptr()
        views = self._views.get(key)
        if views is None:
            parameters = [_view(flat, layer, offset) for _, layer, offset in self._parameters]
            statistics = [_view(flat, layer, offset) for _, layer, offset in self._statistics]
            views = self._views[key] = (parameters, statistics)
        return views


def _view(flat: Tensor, layer: Layer, offset: int) -> Tensor:
    return flat[offset : offset + layer.elements].view(layer.shape)
