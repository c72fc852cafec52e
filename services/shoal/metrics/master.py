"""The master's metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_JOB_SECONDS = (1, 5, 15, 60, 300, 900, 3_600, 14_400, 43_200, 86_400, 259_200)
_STORE_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class MasterMetrics:
    """Built once per master over its registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.workers = Gauge("shoal_workers", "Workers by state (alive, suspect, lost).", ["state"], registry=registry)
        self.servers = Gauge(
            "shoal_parameter_servers",
            "Parameter servers by state (alive, suspect, lost).",
            ["state"],
            registry=registry,
        )
        self.worker_cpu = Gauge(
            "shoal_worker_cpu_ratio",
            "CPU load of the worker's machine, 0 to 1, from its last heartbeat.",
            ["worker"],
            registry=registry,
        )
        self.worker_memory = Gauge(
            "shoal_worker_memory_ratio",
            "Memory in use on the worker's machine or in its container, 0 to 1, from its last heartbeat.",
            ["worker"],
            registry=registry,
        )
        self.worker_jobs = Gauge(
            "shoal_worker_jobs", "Jobs that the worker runs, from its last heartbeat.", ["worker"], registry=registry
        )
        self.heartbeats = Counter(
            "shoal_heartbeats_total",
            "Heartbeats received, by outcome (recognized, unknown).",
            ["outcome"],
            registry=registry,
        )
        self.fenced = Counter(
            "shoal_incarnations_fenced_total",
            "Incarnations of workers cut off on a parameter server, because they were lost or replaced.",
            registry=registry,
        )
        self.probes = Counter(
            "shoal_probes_total",
            "Silent members asked on another connection, by finding (alive, gone, silent).",
            ["finding"],
            registry=registry,
        )
        self.jobs = Gauge("shoal_jobs", "Live jobs by phase.", ["phase"], registry=registry)
        self.jobs_submitted = Counter("shoal_jobs_submitted_total", "Jobs accepted.", registry=registry)
        self.job_results = Counter(
            "shoal_job_results_total",
            "Jobs that ended, by outcome (succeeded, failed, cancelled).",
            ["outcome"],
            registry=registry,
        )
        self.attempts_ended_early = Counter(
            "shoal_job_attempts_ended_early_total",
            "Attempts that ended before the job was done, by reason.",
            ["reason"],
            registry=registry,
        )
        self.steps = Counter("shoal_steps_committed_total", "Training steps committed, of all jobs.", registry=registry)
        self.samples = Counter(
            "shoal_samples_committed_total", "Samples whose gradient was committed, of all jobs.", registry=registry
        )
        self.job_loss = Gauge(
            "shoal_job_loss", "Training loss of the running job's last step.", ["job_id"], registry=registry
        )
        self.job_accuracy = Gauge(
            "shoal_job_accuracy_ratio",
            "Held-out accuracy of the running job's last evaluation, 0 to 1.",
            ["job_id"],
            registry=registry,
        )
        self.job_step = Gauge("shoal_job_step", "Committed steps of the running job.", ["job_id"], registry=registry)
        self.job_samples_per_second = Gauge(
            "shoal_job_samples_per_second", "Training speed of the running job.", ["job_id"], registry=registry
        )
        self.job_seconds = Histogram(
            "shoal_job_duration_seconds",
            "Time from a job's submission to its end, by outcome (succeeded, failed, cancelled).",
            ["outcome"],
            buckets=_JOB_SECONDS,
            registry=registry,
        )
        self.snapshots = Counter(
            "shoal_snapshots_total",
            "Snapshots of running jobs, by outcome (committed, failed, missed: the version had passed).",
            ["outcome"],
            registry=registry,
        )
        self.job_snapshot_step = Gauge(
            "shoal_job_snapshot_step", "Step of the running job's newest snapshot.", ["job_id"], registry=registry
        )
        self.decisions = Counter(
            "shoal_scheduling_decisions_total",
            "Decisions of the scheduler that changed something, by kind and reason.",
            ["what", "reason"],
            registry=registry,
        )
        self.store_seconds = Histogram(
            "shoal_store_operation_seconds",
            "Time of one operation of the job store, by operation.",
            ["operation"],
            buckets=_STORE_SECONDS,
            registry=registry,
        )
        self.store_errors = Counter(
            "shoal_store_errors_total", "Operations that found the job store unavailable.", registry=registry
        )
        self.epoch = Gauge(
            "shoal_master_epoch", "Epoch in which this master leads; 0: it stands by.", registry=registry
        )

    def forget_worker(self, worker_id: str) -> None:
        for gauge in (self.worker_cpu, self.worker_memory, self.worker_jobs):
            gauge.remove_by_labels({"worker": worker_id})

    def forget_job(self, job_id: str) -> None:
        for gauge in (
            self.job_loss,
            self.job_accuracy,
            self.job_step,
            self.job_samples_per_second,
            self.job_snapshot_step,
        ):
            gauge.remove_by_labels({"job_id": job_id})
