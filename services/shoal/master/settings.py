"""The master's settings, each with its unit and reason."""

from pathlib import Path
from typing import ClassVar

import pydantic

from shoal.jobspec.spec import TrainingConfig
from shoal.process.settings import RoleSettings


class MasterSettings(RoleSettings):
    section: ClassVar[str] = "master"

    host: str = pydantic.Field("127.0.0.1", description="address to serve on; 0.0.0.0 serves other machines, too")
    port: int = pydantic.Field(7070, ge=0, le=65_535, description="gRPC port; 0: any free one")
    metrics_port: int = pydantic.Field(
        7071, ge=0, le=65_535, description="HTTP port of /metrics, /livez and /readyz; 0: any free one"
    )
    data_dir: Path = pydantic.Field(
        Path("~/.local/share/shoal/master"), description="folder of the SQLite file, where `store` names none"
    )
    store: str = pydantic.Field(
        "",
        description="sqlite:///PATH, postgresql://USER:PASSWORD@HOST/DATABASE (for more than one master), or memory://"
        " to forget at exit; default: shoal.db (SQLite) in data_dir",
    )
    store_connections: int = pydantic.Field(
        8, ge=1, description="PostgreSQL: most connections at a time, beside the one that holds the lead"
    )
    store_timeout_seconds: float = pydantic.Field(
        5, gt=0, description="PostgreSQL: an operation fails that waits or works for longer"
    )
    leadership_lease_seconds: float = pydantic.Field(
        10,
        gt=0,
        description="PostgreSQL: a standby leads when the leader has not renewed for so long, as when it is frozen; one"
        " that dies shows sooner. The leader gives up after 0.75 of it: time for the database to restart",
    )

    lease_seconds: float = pydantic.Field(
        10, gt=0, description="a member is lost when it says nothing for so long; long enough for a full GC or swap"
    )
    heartbeat_seconds: float = pydantic.Field(
        1, gt=0, description="how often members are told to send heartbeats; several must fit into a lease"
    )
    suspect_grace_seconds: float = pydantic.Field(
        1, ge=0, description="a worker whose long poll broke is lost after this unless it calls again"
    )
    probe_seconds: float = pydantic.Field(
        1,
        gt=0,
        description="a silent member is asked on another connection before it counts as lost; the longest wait for its"
        " answer. A definite one (nobody listens there, another process does, it lives) settles it at once",
    )
    lost_kept_seconds: float = pydantic.Field(
        300, ge=0, description="lost members stay in the lists for so long, for people to see"
    )
    longest_poll_seconds: float = pydantic.Field(
        30, gt=0, description="RequestJob is held no longer, whatever it asks; below common proxies' idle limits"
    )

    kubernetes_namespace: str = pydantic.Field(
        "", description="watch the pods there and tell jobs of OOM kills, evictions and deletions; default: do not"
    )
    kubernetes_selector: str = pydantic.Field(
        "app.kubernetes.io/part-of=shoal", description="labels of the pods to watch, key=value with commas between"
    )

    tick_seconds: float = pydantic.Field(
        0.25, gt=0, description="the scheduler looks at least so often; changes wake it at once"
    )
    rebalance_gain: float = pydantic.Field(
        0.25, ge=0, lt=1, description="ranks move for speed only if a step gets shorter by this fraction"
    )
    rebalance_gain_seconds: float = pydantic.Field(
        0.0005, ge=0, description="and by at least so much: below it, the exchange and the noise of measuring decide"
    )
    rebalance_seconds: float = pydantic.Field(
        5, ge=0, description="ranks move for speed at most so often; speeds are moving means and need time to settle"
    )
    retry_delay_seconds: float = pydantic.Field(
        0.5, ge=0, description="wait before the next attempt of a job that failed, doubled for each further one"
    )
    longest_retry_delay_seconds: float = pydantic.Field(30, ge=0, description="bound of the doubling")

    call_seconds: float = pydantic.Field(
        10, gt=0, description="deadline of short calls to parameter servers and workers"
    )
    push_seconds: float = pydantic.Field(
        2, gt=0, description="deadline of a pushed grant; the worker's own poll hands it out anyway"
    )
    snapshot_seconds: float = pydantic.Field(
        600, gt=0, description="deadline of one shard's final snapshot; a slow disk writes 10 GB in this time"
    )
    snapshots_kept: int = pydantic.Field(
        2, ge=1, description="newest snapshots kept of a live job: if one turns out to be damaged, there is one before"
    )
    ended_snapshots_seconds: float = pydantic.Field(
        604_800, ge=0, description="the last snapshot of a cancelled or failed job is kept for so long, to resume from"
    )
    snapshot_tries: int = pydantic.Field(
        5, ge=1, description="tries of the final snapshot before the job counts as failed"
    )
    progress_wait_seconds: float = pydantic.Field(
        5, gt=0, description="how long a parameter server may hold GetProgress when nothing is new"
    )
    progress_interval_seconds: float = pydantic.Field(
        0.1, ge=0, description="least time between two GetProgress of one job, so that fast steps come in batches"
    )
    watch_interval_seconds: float = pydantic.Field(
        0.1, ge=0, description="least time between two messages of one Watch: people see no more than 10 a second"
    )
    rate_window_seconds: float = pydantic.Field(
        5, gt=0, description="samples_per_second is measured over this much of the recent past"
    )

    members_limit: int = pydantic.Field(
        10_000, ge=1, description="most workers and parameter servers in the lists; one more is told to come again"
    )
    spec_bytes_limit: int = pydantic.Field(
        1 << 20, ge=1_000, description="longest job spec that is taken; real ones have a few kB"
    )
    streams_limit: int = pydantic.Field(
        200, ge=1, description="most watches, followed logs and downloads at a time; one more is told to come again"
    )

    log_lines_kept: int = pydantic.Field(10_000, ge=1, description="newest log lines kept per job")
    log_line_characters: int = pydantic.Field(8_192, ge=80, description="longer log lines are cut")
    events_kept: int = pydantic.Field(1_000, ge=10, description="newest events kept per job")
    ended_jobs_kept: int = pydantic.Field(
        10_000, ge=1, description="newest ended jobs kept; about 10 kB each, and 8 bytes per step of its loss curve"
    )
    loss_steps_kept: int = pydantic.Field(
        4_000_000, ge=1, description="a job's losses behind this step are not kept (8 bytes each)"
    )

    default_learning_rate: float = pydantic.Field(0.1, gt=0, description="TrainingConfig: for jobs that name none")
    default_batch_size: int = pydantic.Field(16, ge=1, description="TrainingConfig: samples of a micro-batch")
    max_epochs: int = pydantic.Field(10, ge=1, description="TrainingConfig: epochs of jobs that give no length")
    optimizer: str = pydantic.Field("sgd", description="TrainingConfig: for jobs that name none")

    @property
    def training_config(self) -> TrainingConfig:
        return TrainingConfig(
            default_learning_rate=self.default_learning_rate,
            default_batch_size=self.default_batch_size,
            max_epochs=self.max_epochs,
            optimizer=self.optimizer,
        )

    @property
    def store_url(self) -> str:
        return self.store or f"sqlite:///{self.data_dir.expanduser() / 'shoal.db'}"
