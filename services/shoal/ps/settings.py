"""Settings of a parameter server."""

import tempfile
from pathlib import Path
from typing import ClassVar

import pydantic

from shoal.process.settings import RoleSettings


class PsSettings(RoleSettings):
    section: ClassVar[str] = "ps"

    host: str = pydantic.Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = pydantic.Field(7080, ge=0, le=65_535, description="gRPC port; 0: any free one")
    advertise_host: str = pydantic.Field(
        "", description="host name that workers use; default: `host`, or this machine's name where that is 0.0.0.0"
    )
    metrics_port: int = pydantic.Field(7081, ge=0, le=65_535, description="HTTP port of /metrics, /livez, /readyz")
    master: str = pydantic.Field("127.0.0.1:7070", description="HOST:PORT of the master")
    server_id: str = pydantic.Field("", description="stable name; default: host name and port")
    data_dir: Path = pydantic.Field(
        default_factory=lambda: Path(tempfile.gettempdir()) / "shoal-ps", description="folder of snapshots"
    )
    snapshot_target: str = pydantic.Field(
        "",
        description="where snapshots are kept: a folder, or a URL that fsspec knows and all servers share, such as"
        " s3://BUCKET/PREFIX (needs shoal[s3]); default: data_dir",
    )
    memory_bytes: int = pydantic.Field(
        0,
        ge=0,
        description="most that all jobs' weights (two versions) and optimizer state may take here; a job that needs"
        " more is refused. 0: what the container or the machine has free when the job comes",
    )
    shared_memory: bool = pydantic.Field(True, description="offer shared memory to trainers on this host")
    max_streams: int = pydantic.Field(
        256, ge=1, description="threads for calls and streams: one per attached trainer, plus a few"
    )
    heartbeat_seconds: float = pydantic.Field(1.0, gt=0, description="between heartbeats; the master may ask for other")
