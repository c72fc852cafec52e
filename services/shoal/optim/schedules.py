"""Learning-rate schedules: pure functions of the step."""

from typing import Annotated, Literal

import pydantic


class ConstantSchedule(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)
    name: Literal["constant"] = "constant"
    warmup_steps: int = pydantic.Field(0, ge=0)


ScheduleSpec = Annotated[ConstantSchedule, pydantic.Field(discriminator="name")]
