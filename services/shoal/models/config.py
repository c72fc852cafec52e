"""What every model family's config has."""

import pydantic


class ModelConfig(pydantic.BaseModel):
    """`input_shape` and `classes` come from the dataset; a spec may give them where there is none (external jobs)."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    input_shape: tuple[pydantic.PositiveInt, ...] | None = pydantic.Field(
        None, description="of one sample: (features) or (channels, height, width); default: the dataset's"
    )
    classes: int | None = pydantic.Field(None, ge=2, description="number of classes; default: the dataset's")
