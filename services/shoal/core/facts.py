"""What must be known of a dataset to lay out a model and plan its steps."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetFacts:
    train_samples: int
    heldout_samples: int
    input_shape: tuple[int, ...]  # of one sample: (features,) or (channels, height, width)
    classes: int
    fingerprint: str  # sha256, hex, of both splits' bytes: workers that disagree must not train together
