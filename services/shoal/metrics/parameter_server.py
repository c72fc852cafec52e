"""The parameter server's metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class ParameterServerMetrics:
    """Built once per parameter server over its registry. `transport` is unary, grpc or shared_memory."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.pushes = Counter(
            "shoal_ps_pushes_total",
            "Pushes of gradients received, by transport and outcome (accepted, duplicate, refused).",
            ["transport", "outcome"],
            registry=registry,
        )
        self.push_bytes = Counter(
            "shoal_ps_push_bytes_total", "Gradient bytes accepted.", ["transport"], registry=registry
        )
        self.push_seconds = Histogram(
            "shoal_ps_push_seconds",
            "Time to take in one push: checks and additions, not the wait for others.",
            ["transport"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.pushes_refused = Counter(
            "shoal_ps_pushes_refused_total", "Pushes refused, by reason.", ["reason"], registry=registry
        )
        self.stale = Counter(
            "shoal_ps_stale_callers_total",
            "Callers refused because they are fenced off, by what (attempt, incarnation, master).",
            ["what"],
            registry=registry,
        )
        self.pulls = Counter(
            "shoal_ps_pulls_total",
            "Pulls of weights answered, by transport and outcome (fresh, current).",
            ["transport", "outcome"],
            registry=registry,
        )
        self.pull_bytes = Counter(
            "shoal_ps_pull_bytes_total", "Weight bytes sent or made visible.", ["transport"], registry=registry
        )
        self.pull_seconds = Histogram(
            "shoal_ps_pull_seconds",
            "Time to answer one pull, the wait for its version not included.",
            ["transport"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.updates = Counter(
            "shoal_ps_updates_applied_total", "Updates that an optimizer applied, of all jobs.", registry=registry
        )
        self.update_seconds = Histogram(
            "shoal_ps_update_seconds",
            "Time of the optimizer for one update of this shard.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.version = Gauge(
            "shoal_ps_job_version", "Committed version of a live job's share.", ["job_id"], registry=registry
        )
        self.trainers = Gauge(
            "shoal_ps_trainers", "Trainers connected, by transport.", ["transport"], registry=registry
        )
        self.shares = Gauge("shoal_ps_shares", "Jobs with a share here.", registry=registry)
        self.weight_bytes = Gauge(
            "shoal_ps_weight_bytes",
            "Memory of all shares' weights, both versions of the replay window.",
            registry=registry,
        )
        self.snapshots = Counter(
            "shoal_ps_snapshots_total", "Snapshots, by outcome (written, failed).", ["outcome"], registry=registry
        )
        self.snapshot_seconds = Histogram(
            "shoal_ps_snapshot_seconds",
            "Time to write one snapshot durably.",
            buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300),
            registry=registry,
        )

        self.snapshot_stall_seconds = Histogram(
            "shoal_ps_snapshot_stall_seconds",
            "Time for which training stood still while a share was copied for a snapshot.",
            buckets=_SECONDS,
            registry=registry,
        )

    def of_transport(self, transport: str) -> "TransportFigures":
        return TransportFigures(self, transport)

    def forget_job(self, job_id: str) -> None:
        """Removes the series of a job whose share is gone."""
        self.version.remove_by_labels({"job_id": job_id})


class TransportFigures:
    """One transport's metrics, looked up once: at a small step's size the look-up costs more than the sum."""

    def __init__(self, metrics: ParameterServerMetrics, transport: str) -> None:
        self._pushes = metrics.pushes.labels(transport, "accepted")
        self._push_bytes = metrics.push_bytes.labels(transport)
        self._push_seconds = metrics.push_seconds.labels(transport)
        self._pulls = metrics.pulls.labels(transport, "fresh")
        self._pull_bytes = metrics.pull_bytes.labels(transport)
        self._pull_seconds = metrics.pull_seconds.labels(transport)

    def pushed(self, size: int, seconds: float) -> None:
        """A push of `size` bytes was taken in."""
        self._pushes.inc()
        self._push_bytes.inc(size)
        self._push_seconds.observe(seconds)

    def pulled(self, size: int, seconds: float) -> None:
        """Weights of `size` bytes were sent."""
        self._pulls.inc()
        self._pull_bytes.inc(size)
        self._pull_seconds.observe(seconds)
