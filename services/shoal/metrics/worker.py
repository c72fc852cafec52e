"""The worker's metrics. Jobs have no label here: the master knows them, and a worker's series would outlive them."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_UNIT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_WAIT_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class WorkerMetrics:
    """Built once per worker agent over its registry; trainers report to the agent."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.jobs_running = Gauge("shoal_worker_jobs_running", "Jobs with a live trainer.", registry=registry)
        self.slots = Gauge(
            "shoal_worker_job_slots", "Jobs that may run at once (max_concurrent_jobs).", registry=registry
        )
        self.units = Counter(
            "shoal_worker_units_total", "Units, that is (step, rank) gradients, computed.", registry=registry
        )
        self.unit_seconds = Histogram(
            "shoal_worker_unit_seconds",
            "Compute time of one unit: forward and backward.",
            buckets=_UNIT_SECONDS,
            registry=registry,
        )
        self.wait_seconds = Histogram(
            "shoal_worker_pull_wait_seconds",
            "Time of one step from the last push to the next version: the pull, and the wait for others.",
            buckets=_WAIT_SECONDS,
            registry=registry,
        )
        self.pushes = Counter(
            "shoal_worker_pushes_total",
            "Gradient blocks pushed to shards, by transport (shared_memory, grpc).",
            ["transport"],
            registry=registry,
        )
        self.push_bytes = Counter(
            "shoal_worker_push_bytes_total", "Gradient bytes handed to shards.", ["transport"], registry=registry
        )
        self.trainer_starts = Counter("shoal_worker_trainer_starts_total", "Trainers started.", registry=registry)
        self.trainer_exits = Counter(
            "shoal_worker_trainer_exits_total",
            "Trainers ended, by outcome (finished, failed, fenced, crashed).",
            ["outcome"],
            registry=registry,
        )
        self.trainer_hangs = Counter(
            "shoal_worker_trainer_hangs_total", "Trainers killed because they gave no sign of life.", registry=registry
        )
        self.fenced = Counter(
            "shoal_worker_fenced_total",
            "Times that this worker was told it is fenced off, by what (attempt, incarnation).",
            ["what"],
            registry=registry,
        )
        self.registrations = Counter(
            "shoal_worker_registrations_total", "Times this worker registered with a master.", registry=registry
        )
        self.heartbeats = Counter(
            "shoal_worker_heartbeats_total",
            "Heartbeats sent, by outcome (recognized, unknown, failed).",
            ["outcome"],
            registry=registry,
        )
        self.cpu = Gauge("shoal_worker_machine_cpu_ratio", "CPU load of this machine, 0 to 1.", registry=registry)
        self.memory = Gauge(
            "shoal_worker_machine_memory_ratio",
            "Memory in use on this machine or in this container, 0 to 1.",
            registry=registry,
        )
