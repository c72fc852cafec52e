"""Processes are killed or frozen while a job runs: how long until it goes on."""

from collections.abc import Iterator

from tests.benchmarks.recovery.clusters import LEASE_SECONDS, spec_of, timed, training, until
from tests.benchmarks.recovery.figures import Figure

# 125 million parameters on one shard: 500 MB of weights, as much momentum, so 1 GB in a snapshot.
BIG_ELEMENTS = 125_000_000
BIG = {"type": "mlp", "input_shape": [64], "classes": 10, "hidden": [11140, 11140]}


def trainer_killed(runs: int) -> Iterator[Figure]:
    """SIGKILL to one of two trainers; until the step under way and the next one are committed."""
    seconds: list[float] = []
    with training() as bench:
        for _ in range(runs):
            trainer = bench.trainer_of("worker-1")
            with timed(seconds):
                trainer.kill()
                bench.goes_on()
            until(lambda before=trainer.pid: bench.trainer_of("worker-1").pid != before, "no new trainer")
            bench.trains_on(*bench.cluster.workers)
        assert bench.job.attempt == 1
    yield Figure(name="trainer killed, the same step goes on", values=seconds, unit=" s", goal=5)


def agent_killed(runs: int) -> Iterator[Figure]:
    """SIGKILL to a worker; its stream breaks. Until its ranks are elsewhere and steps are made."""
    seconds: list[float] = []
    with training() as bench:
        for _ in range(runs):
            name = bench.cluster.workers[-1]
            with timed(seconds):
                bench.cluster.kill_worker(name)
                until(lambda gone=name: gone not in bench.hosts, "its ranks stay")
                bench.goes_on()
            bench.cluster.add_worker()
            bench.trains_on(*bench.cluster.workers)
        assert bench.job.attempt == 1
    yield Figure(name="agent killed, its ranks moved", values=seconds, unit=" s", goal=2)


def worker_frozen(runs: int) -> Iterator[Figure]:
    """SIGSTOP to a worker; until its ranks are elsewhere and steps are made."""
    seconds: list[float] = []
    with training() as bench:
        for _ in range(runs):
            name = bench.cluster.workers[-1]
            with timed(seconds):
                bench.cluster.freeze_worker(name)
                until(lambda gone=name: gone not in bench.hosts, "its ranks stay")
                bench.goes_on()
            bench.cluster.thaw_worker(name)
            bench.trains_on(*bench.cluster.workers)
        assert bench.job.attempt == 1
    goal, detail = LEASE_SECONDS + 3, f"with a lease of {LEASE_SECONDS:g} s"
    yield Figure(name="worker frozen, its ranks moved", values=seconds, unit=" s", goal=goal, detail=detail)


def shard_killed(runs: int) -> Iterator[Figure]:
    """SIGKILL to the only shard, which starts again at once; until it has committed a step behind the snapshot."""
    seconds: list[float] = []
    spec = spec_of(
        model=BIG,
        training={"world_size": 1, "batch_size": 4, "steps": 100_000_000, "seed": 1},
        resources={"shards": 1},
        snapshots={"every_seconds": 3},
    )
    with training(workers=1, shards=1, spec=spec) as bench:
        for run in range(runs):
            attempt = run + 1

            def step(attempt: int = attempt) -> int:
                views = bench.client.snapshots(bench.job_id)
                return next((view.step for view in views if view.current and view.attempt == attempt), 0)

            until(step, "no snapshot")
            size = sum(view.size for view in bench.client.snapshots(bench.job_id) if view.current) / 1e6
            with timed(seconds):
                bench.cluster.kill_server("ps-1")
                bench.cluster.restart_server("ps-1")
                until(lambda: bench.version() > 0, "the share is not there")
                bench.goes_on(by=1)
        reasons = [event.reason for event in bench.job.events]
        assert reasons.count("Restored") == runs
    detail = f"{BIG_ELEMENTS / 1e6:.0f} M parameters on one shard, {size:.0f} MB to read"
    yield Figure(name="shard killed, the job trains again", values=seconds, unit=" s", goal=5, detail=detail)


def master_killed(runs: int) -> Iterator[Figure]:
    """SIGKILL to the master, which starts again at once: until a submit is acknowledged, and until steps are seen."""
    submits: list[float] = []
    running: list[float] = []
    waiting = spec_of(resources={"shards": 2, "min_workers": 8})  # it never begins
    with training() as bench:
        for number in range(runs):
            step = bench.job.step
            with timed(running):
                with timed(submits):
                    bench.cluster.kill_master()
                    bench.cluster.restart_master(wait=False)
                    submitted = bench.client.submit(waiting, idempotency_key=f"run-{number}")
                until(lambda before=step: bench.job.step > before and bench.hosts, "the job is not seen to run")
            bench.client.cancel(submitted.job_id)
            bench.trains_on(*bench.cluster.workers)
        assert bench.job.attempt == 1
    yield Figure(name="master killed, a submit is acknowledged", values=submits, unit=" s", goal=3)
    yield Figure(name="master killed, the job is seen to go on", values=running, unit=" s", goal=3)
