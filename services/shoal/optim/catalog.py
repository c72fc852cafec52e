"""The table of update rules by name. No torch: the master validates with it.

These are torch.optim's rules that need nothing but the gradient; LBFGS (calls the model again) and SparseAdam (sparse
gradients) are not among them. Left out of torch's hyperparameters: `foreach`, `fused`, `capturable` and
`differentiable`, which choose an implementation (`rules.py` does), and `maximize` (the gradient is of a loss).
"""

from typing import Annotated, ClassVar, Literal, Self

import pydantic

from shoal.optim.config import Beta, NotNegative, OptimizerConfig


class Adadelta(OptimizerConfig):
    """Zeiler 2012, arXiv:1212.5701."""

    torch_learning_rate: ClassVar[float] = 1.0

    name: Literal["adadelta"] = "adadelta"
    rho: float = pydantic.Field(0.9, ge=0, le=1, description="decay of the running average of squared gradients")
    eps: NotNegative = 1e-6
    weight_decay: NotNegative = 0.0


class Adafactor(OptimizerConfig):
    """Shazeer and Stern 2018, arXiv:1804.04235. Row and column statistics: needs whole layers."""

    whole_layers: ClassVar[bool] = True
    torch_learning_rate: ClassVar[float] = 0.01

    name: Literal["adafactor"] = "adafactor"
    beta2_decay: float = pydantic.Field(-0.8, le=0, description="exponent of the step in the decay of the variance")
    eps: tuple[NotNegative | None, NotNegative] = pydantic.Field(
        (None, 1e-3), description="of the squared gradient (null: float32's epsilon) and of the parameter's scale"
    )
    d: float = pydantic.Field(1.0, ge=1, description="clipping threshold of the update's root mean square")
    weight_decay: NotNegative = 0.0


class Adagrad(OptimizerConfig):
    """Duchi, Hazan and Singer 2011, JMLR 12."""

    torch_learning_rate: ClassVar[float] = 0.01

    name: Literal["adagrad"] = "adagrad"
    lr_decay: NotNegative = 0.0
    weight_decay: NotNegative = 0.0
    initial_accumulator_value: NotNegative = 0.0
    eps: NotNegative = 1e-10


class Adam(OptimizerConfig):
    """Kingma and Ba 2014, arXiv:1412.6980; `amsgrad`: Reddi, Kale and Kumar 2018."""

    torch_learning_rate: ClassVar[float] = 0.001

    name: Literal["adam"] = "adam"
    betas: tuple[Beta, Beta] = pydantic.Field((0.9, 0.999), description="decay of the first and second moment")
    eps: NotNegative = 1e-8
    weight_decay: NotNegative = 0.0
    amsgrad: bool = pydantic.Field(False, description="divide by the largest second moment so far")
    decoupled_weight_decay: bool = pydantic.Field(False, description="true: this is AdamW")


class AdamW(OptimizerConfig):
    """Loshchilov and Hutter 2017, arXiv:1711.05101."""

    torch_learning_rate: ClassVar[float] = 0.001

    name: Literal["adamw"] = "adamw"
    betas: tuple[Beta, Beta] = pydantic.Field((0.9, 0.999), description="decay of the first and second moment")
    eps: NotNegative = 1e-8
    weight_decay: NotNegative = 0.01
    amsgrad: bool = pydantic.Field(False, description="divide by the largest second moment so far")


class Adamax(OptimizerConfig):
    """Kingma and Ba 2014, arXiv:1412.6980, section 7.1."""

    torch_learning_rate: ClassVar[float] = 0.002

    name: Literal["adamax"] = "adamax"
    betas: tuple[Beta, Beta] = pydantic.Field((0.9, 0.999), description="decay of the first moment and the largest")
    eps: NotNegative = 1e-8
    weight_decay: NotNegative = 0.0


class Asgd(OptimizerConfig):
    """Polyak and Juditsky 1992. As in torch, the averaged weights are kept as state and are not the model's."""

    torch_learning_rate: ClassVar[float] = 0.01

    name: Literal["asgd"] = "asgd"
    lambd: float = pydantic.Field(1e-4, description="decay term")
    alpha: float = pydantic.Field(0.75, description="power of the learning rate's decay")
    t0: float = pydantic.Field(1e6, description="step at which averaging begins")
    weight_decay: NotNegative = 0.0


class Muon(OptimizerConfig):
    """Jordan et al. 2024, kellerjordan.github.io/posts/muon. Orthogonalises matrices: needs whole layers.

    It is defined for matrices only. All other parameters (biases, convolutions, norms) are given to AdamW with torch's
    betas and eps and this rule's learning rate and weight decay; `adjust_lr_fn: match_rms_adamw` makes one learning
    rate fit both (arXiv:2502.16982).
    """

    whole_layers: ClassVar[bool] = True
    torch_learning_rate: ClassVar[float] = 0.001

    name: Literal["muon"] = "muon"
    weight_decay: NotNegative = 0.1
    momentum: NotNegative = 0.95
    nesterov: bool = True
    ns_coefficients: tuple[float, float, float] = pydantic.Field(
        (3.4445, -4.7750, 2.0315), description="of the Newton-Schulz polynomial"
    )
    eps: NotNegative = 1e-7
    ns_steps: int = pydantic.Field(5, ge=0, lt=100, description="Newton-Schulz iterations")
    adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = pydantic.Field(
        None, description="how the learning rate follows from a matrix' shape; null: original"
    )


class NAdam(OptimizerConfig):
    """Dozat 2016, ICLR workshop: Adam with Nesterov momentum."""

    torch_learning_rate: ClassVar[float] = 0.002

    name: Literal["nadam"] = "nadam"
    betas: tuple[Beta, Beta] = pydantic.Field((0.9, 0.999), description="decay of the first and second moment")
    eps: NotNegative = 1e-8
    weight_decay: NotNegative = 0.0
    momentum_decay: NotNegative = 4e-3
    decoupled_weight_decay: bool = pydantic.Field(False, description="weight decay as in AdamW")


class RAdam(OptimizerConfig):
    """Liu et al. 2019, arXiv:1908.03265: Adam with rectified variance."""

    torch_learning_rate: ClassVar[float] = 0.001

    name: Literal["radam"] = "radam"
    betas: tuple[Beta, Beta] = pydantic.Field((0.9, 0.999), description="decay of the first and second moment")
    eps: NotNegative = 1e-8
    weight_decay: NotNegative = 0.0
    decoupled_weight_decay: bool = pydantic.Field(False, description="weight decay as in AdamW")


class RMSprop(OptimizerConfig):
    """Hinton 2012, lecture 6e; `centered`: Graves 2013, arXiv:1308.0850."""

    torch_learning_rate: ClassVar[float] = 0.01

    name: Literal["rmsprop"] = "rmsprop"
    alpha: NotNegative = pydantic.Field(0.99, description="decay of the running average of squared gradients")
    eps: NotNegative = 1e-8
    weight_decay: NotNegative = 0.0
    momentum: NotNegative = 0.0
    centered: bool = pydantic.Field(False, description="divide by the variance instead of the second moment")


class Rprop(OptimizerConfig):
    """Riedmiller and Braun 1993. Only gradients' signs count; the learning rate is each element's first step size."""

    torch_learning_rate: ClassVar[float] = 0.01

    name: Literal["rprop"] = "rprop"
    etas: tuple[float, float] = pydantic.Field((0.5, 1.2), description="factors that shrink and grow a step size")
    step_sizes: tuple[float, float] = pydantic.Field((1e-6, 50.0), description="least and largest step size")

    @pydantic.model_validator(mode="after")
    def _etas_around_one(self) -> Self:
        if not 0 < self.etas[0] < 1 < self.etas[1]:
            raise ValueError(f"etas must be 0 < first < 1 < second, not {self.etas[0]} and {self.etas[1]}")
        return self


class Sgd(OptimizerConfig):
    """Stochastic gradient descent; `nesterov`: Sutskever et al. 2013, ICML."""

    torch_learning_rate: ClassVar[float] = 0.001

    name: Literal["sgd"] = "sgd"
    momentum: NotNegative = 0.0
    dampening: float = 0.0
    weight_decay: NotNegative = 0.0
    nesterov: bool = False

    @pydantic.model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and (self.momentum <= 0 or self.dampening != 0):
            raise ValueError(
                f"nesterov needs momentum > 0 and dampening 0, not momentum {self.momentum} and "
                f"dampening {self.dampening}"
            )
        return self


OptimizerSpec = Annotated[
    Adadelta | Adafactor | Adagrad | Adam | AdamW | Adamax | Asgd | Muon | NAdam | RAdam | RMSprop | Rprop | Sgd,
    pydantic.Field(discriminator="name"),
]


def needs_whole_layers(config: OptimizerConfig) -> bool:
    """Must each layer lie whole on one shard (`core.layout.partition(whole=True)`)?"""
    return config.whole_layers


def slots_of(config: OptimizerConfig) -> int:
    """How many numbers the rule keeps for each element that it trains, at most."""
    match config:
        case Sgd():
            return int(config.momentum > 0)
        case Adagrad() | Adafactor() | Asgd():  # Adafactor's are fewer, but for vectors
            return 1
        case Adam() | AdamW():
            return 2 + config.amsgrad
        case RMSprop():
            return 1 + (config.momentum > 0) + config.centered
        case _:  # Muon's are one for matrices and AdamW's two for the rest
            return 2
