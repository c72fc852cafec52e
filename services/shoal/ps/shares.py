"""The shares that this process holds, by job."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from shoal.core.errors import Exhausted, InvalidInput, NotFound, ShoalError, Stale
from shoal.metrics.parameter_server import ParameterServerMetrics
from shoal.process.load import free_memory_bytes
from shoal.ps.initial import InitialWeights
from shoal.ps.share import Share
from shoal.ps.snapshot import Restore, Snapshots
from shoal.wire.exchange.base import Hello, ShareEndpoint


class Shares:
    """Implements `wire.exchange.base.Endpoints`."""

    def __init__(self, *, snapshots: Snapshots, metrics: ParameterServerMetrics, memory_bytes: int = 0) -> None:
        """`memory_bytes`: the most that all shares may take; 0: what is free when one is made."""
        self._memory_bytes = memory_bytes
        self._reserved: dict[str, int] = {}  # bytes by job
        self._snapshots = snapshots
        self._metrics = metrics
        self._lock = threading.Lock()
        self._by_job: dict[str, Share] = {}
        self._turns = threading.Condition()
        self._at_work: set[str] = set()  # jobs whose share is just being made or dropped

    def create(
        self,
        *,
        job_id: str,
        attempt: int,
        spec_json: str,
        index: int,
        shards: int,
        restore: Restore | None = None,
        start_over: bool = False,
        call: tuple[int, int] = (0, 0),
        initial: InitialWeights | None = None,
    ) -> Share:
        """Makes the share, or fences lower attempts of the one that is here. A new one goes on from `restore`.

        With `start_over` the one that is here counts only if it was made in this attempt and is at the version asked
        for. `call` is the master's epoch and its count of calls: one that comes after a later one, or twice, starts
        nothing over, for trainers may have made steps since. Raises InvalidInput, Exhausted or Stale; Corrupt for a
        file that is not what was written.
        """
        if not 0 <= index < shards:
            raise InvalidInput(f"shard index {index} is not below {shards}", field="shard_index")
        with self._turn(job_id):
            share = self._find(job_id)
            if share is not None:
                if start_over and attempt < share.attempt:
                    raise Stale(f"attempt {attempt} of job {job_id} is over: {share.attempt} runs")
                made = (attempt, restore.version if restore else 0)
                is_late = (0, 0) < call <= share.newest_call
                if not start_over or is_late or (share.made_in_attempt, share.version) == made:
                    if (share.index, share.shards, share.spec_json) != (index, shards, spec_json):
                        raise Stale(f"job {job_id} has another share here: {share.index} of {share.shards}")
                    share.fence(attempt)
                    share.newest_call = max(share.newest_call, call)
                    return share
                self._drop(job_id, f"attempt {attempt} of job {job_id} begins again")
            if initial is not None and restore is None:
                initial.check()
            try:
                share = Share(
                    job_id=job_id,
                    attempt=attempt,
                    spec_json=spec_json,
                    index=index,
                    shards=shards,
                    metrics=self._metrics,
                    restored=self._snapshots.load(job_id, restore) if restore else None,
                    initial=initial if restore is None else None,
                    reserve=lambda size: self._reserve(job_id, size),
                )
            except ShoalError:
                with self._lock:
                    self._reserved.pop(job_id, None)
                raise
            share.newest_call = call
            with self._lock:
                self._by_job[job_id] = share
                self._metrics.shares.set(len(self._by_job))
            return share

    def get(self, job_id: str) -> Share:
        share = self._find(job_id)
        if share is None:
            raise NotFound(f"job '{job_id}' has no share on this parameter server")
        return share

    def drop(self, job_id: str, reason: str) -> bool:
        with self._turn(job_id):
            return self._drop(job_id, reason)

    def _drop(self, job_id: str, reason: str) -> bool:
        with self._lock:
            share = self._by_job.pop(job_id, None)
            self._reserved.pop(job_id, None)
            self._metrics.shares.set(len(self._by_job))
        if share is None:
            return False
        share.drop(reason)
        self._metrics.weight_bytes.dec(share.weight_bytes)
        self._metrics.forget_job(job_id)
        return True

    def _reserve(self, job_id: str, size: int) -> None:
        """Raises Exhausted if a share of so many bytes has no room beside the others."""
        with self._lock:
            others = sum(held for other, held in self._reserved.items() if other != job_id)
            free = self._memory_bytes - others if self._memory_bytes else free_memory_bytes()
            if size > free:
                raise Exhausted(
                    f"this shard's part of job {job_id} takes {size / 1e6:.0f} MB (two versions of the weights, and the"
                    f" optimizer's state), and {max(0, free) / 1e6:.0f} MB are free on this parameter server: ask for"
                    " more shards (resources.shards), or give it more memory"
                )
            self._reserved[job_id] = size

    def _find(self, job_id: str) -> Share | None:
        with self._lock:
            return self._by_job.get(job_id)

    @contextmanager
    def _turn(self, job_id: str) -> Iterator[None]:
        """To read a snapshot takes its time, and a master that does not wait so long asks again."""
        with self._turns:
            self._turns.wait_for(lambda: job_id not in self._at_work)
            self._at_work.add(job_id)
        try:
            yield
        finally:
            with self._turns:
                self._at_work.discard(job_id)
                self._turns.notify_all()

    def job_ids(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(self._by_job)

    def endpoint(self, hello: Hello) -> ShareEndpoint:
        share = self.get(hello.job_id)
        if hello.attempt != share.attempt:
            raise Stale(f"attempt {hello.attempt} of job {hello.job_id} is over: {share.attempt} runs")
        share.check_incarnation(hello.incarnation)
        share.layout  # noqa: B018  # raises Refused before the first registration
        return share
