"""What every optimizer's config has."""

from typing import Annotated, ClassVar

import pydantic

NotNegative = Annotated[float, pydantic.Field(ge=0)]
Beta = Annotated[float, pydantic.Field(ge=0, lt=1)]


class OptimizerConfig(pydantic.BaseModel):
    """Hyperparameters have torch.optim's names, defaults and limits, except `learning_rate` for `lr`."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    whole_layers: ClassVar[bool] = False  # does the rule need a layer's whole tensor, not just any part of it?
    torch_learning_rate: ClassVar[float]  # torch's default `lr`

    name: str
    learning_rate: float | None = pydantic.Field(
        None, gt=0, description="default: the cluster's, if the cluster's default optimizer has this name; else torch's"
    )
