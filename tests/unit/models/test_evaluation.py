"""Counting on held-out data, against the formulas."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from shoal.models.evaluation import EVALUATION_BATCH, EvaluationSums, evaluate


def test_correct_samples_and_loss_are_those_of_the_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(600, 10, generator=generator)
    labels = torch.randint(10, (600,), generator=generator)
    batches = zip(logits.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True)
    sums = evaluate(nn.Identity(), batches)
    rows, classes = logits.double().numpy(), labels.numpy()
    expected = math.fsum(
        math.log(math.fsum(math.exp(v) for v in row)) - row[label] for row, label in zip(rows, classes, strict=True)
    )
    assert sums.correct == int((rows.argmax(axis=1) == classes).sum())
    assert sums.samples == 600
    assert sums.loss == pytest.approx(expected, rel=1e-6)


def test_the_first_of_equal_logits_is_predicted() -> None:
    assert evaluate(nn.Identity(), [(torch.zeros(2, 3), torch.tensor([0, 1]))]).correct == 1


def test_nothing_to_evaluate_counts_nothing() -> None:
    assert evaluate(nn.Identity(), []) == EvaluationSums(correct=0, samples=0, loss=0.0)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_put_back_and_statistics_stay(training: bool) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.9)).train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.from_numpy(np.ones((4, 3), np.float32))
    sums = [evaluate(model, [(x, torch.zeros(4, dtype=torch.int64))]) for _ in range(2)]
    assert sums[0] == sums[1]
    assert model.training is training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_mode_is_put_back_after_an_error() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(RuntimeError):
        evaluate(model, [(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64))])
    assert model.training
