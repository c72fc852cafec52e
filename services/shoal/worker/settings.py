"""Settings of a worker."""

from pathlib import Path
from typing import Annotated, ClassVar

import pydantic
from pydantic_settings import NoDecode

from shoal.models.catalog import MODEL_TYPES
from shoal.process.settings import RoleSettings


def _split(value: object) -> object:
    """Lists in flags and the environment are written with commas."""
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


_List = pydantic.BeforeValidator(_split)


class WorkerSettings(RoleSettings):
    section: ClassVar[str] = "worker"

    host: str = pydantic.Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = pydantic.Field(7090, ge=0, le=65_535, description="gRPC port; 0: any free one")
    advertise_host: str = pydantic.Field("", description="host name that the master dials; default: `host`")
    metrics_port: int = pydantic.Field(7091, ge=0, le=65_535, description="HTTP port of /metrics, /livez, /readyz")
    master: str = pydantic.Field("127.0.0.1:7070", description="HOST:PORT of the master")
    worker_id: str = pydantic.Field("", description="stable name; default: host name and port")
    max_concurrent_jobs: int = pydantic.Field(1, ge=1, le=64, description="trainers at a time")
    supported_models: Annotated[tuple[str, ...], NoDecode, _List] = pydantic.Field(
        MODEL_TYPES, description="model types that this worker takes, with commas between them"
    )
    data_roots: Annotated[tuple[Path, ...], NoDecode, _List] = pydantic.Field(
        (Path("/usr/share/datasets"),), description="folders whose files jobs may read, with commas between them"
    )
    warm_trainers: int = pydantic.Field(
        1, ge=0, le=4, description="trainer processes kept ready, so that a job starts without loading torch first"
    )
    poll_seconds: float = pydantic.Field(20.0, gt=0, le=30, description="length of a RequestJob long poll")
    leave_seconds: float = pydantic.Field(
        10.0, ge=0, le=600, description="at SIGTERM, the longest wait for the master to take the ranks back"
    )
    trainer_restarts: int = pydantic.Field(
        3,
        ge=0,
        description="times that a trainer killed by a signal is started again within one attempt; then other workers"
        " take its ranks",
    )

    hang_seconds: float = pydantic.Field(
        300.0,
        gt=0,
        description="a trainer that gives no sign of life for so long is killed and started again; longer than the"
        " slowest unit takes, and than reading the data and building the model",
    )

    @pydantic.field_validator("supported_models")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(value) - set(MODEL_TYPES))
        if unknown:
            raise ValueError(f"unknown model types {', '.join(unknown)}; known: {', '.join(MODEL_TYPES)}")
        return value
