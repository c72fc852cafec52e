"""What every optimizer's config has."""

import pydantic


class OptimizerConfig(pydantic.BaseModel):
    """Hyperparameters have torch.optim's names, except `learning_rate` for `lr`."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    learning_rate: float | None = pydantic.Field(None, gt=0, description="default: the cluster's TrainingConfig")
