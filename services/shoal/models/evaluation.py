"""Counting on held-out data. Imports torch."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

EVALUATION_BATCH = 256  # samples; fixed, because a matrix product's bits may depend on the number of rows


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSums:
    """What evaluations of disjoint samples add up to. `correct` is an integer, so accuracy is exact."""

    correct: int
    samples: int
    loss: float  # sum over the samples of their cross entropy (nats), added in float64


def evaluate(model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> EvaluationSums:
    """Runs the model in evaluation mode over (x_BS float32 [batch, *shape], y_B int64 [batch]) pairs.

    The prediction is the first class with the largest logit. The model's mode is put back.
    """
    was_training = model.training
    model.eval()
    correct, samples, loss = 0, 0, 0.0
    try:
        with torch.no_grad():
            for x_BS, y_B in batches:
                logits_BC = model(x_BS)
                correct += int((logits_BC.argmax(dim=1) == y_B).sum())
                samples += len(y_B)
                loss += cross_entropy(logits_BC, y_B, reduction="none").sum(dtype=torch.float64).item()
    finally:
        model.train(was_training)
    return EvaluationSums(correct=correct, samples=samples, loss=loss)
