"""The table of update rules by name. No torch: the master validates with it."""

from typing import Annotated, Literal

import pydantic

from shoal.optim.config import OptimizerConfig


class Sgd(OptimizerConfig):
    name: Literal["sgd"] = "sgd"
    momentum: float = pydantic.Field(0.0, ge=0)


OptimizerSpec = Annotated[Sgd, pydantic.Field(discriminator="name")]
