"""The shares that this process holds, by job."""

import threading

from shoal.core.errors import InvalidInput, NotFound, Stale
from shoal.metrics.parameter_server import ParameterServerMetrics
from shoal.ps.share import Share
from shoal.wire.exchange.base import Hello, ShareEndpoint


class Shares:
    """Implements `wire.exchange.base.Endpoints`."""

    def __init__(self, *, metrics: ParameterServerMetrics) -> None:
        self._metrics = metrics
        self._lock = threading.Lock()
        self._by_job: dict[str, Share] = {}

    def create(self, *, job_id: str, attempt: int, spec_json: str, index: int, shards: int) -> Share:
        """Makes the share, or fences lower attempts of the one that is here. Raises InvalidInput or Stale."""
        if not 0 <= index < shards:
            raise InvalidInput(f"shard index {index} is not below {shards}", field="shard_index")
        with self._lock:
            share = self._by_job.get(job_id)
            if share is None:
                share = Share(
                    job_id=job_id,
                    attempt=attempt,
                    spec_json=spec_json,
                    index=index,
                    shards=shards,
                    metrics=self._metrics,
                )
                self._by_job[job_id] = share
                self._metrics.shares.set(len(self._by_job))
                return share
        if (share.index, share.shards, share.spec_json) != (index, shards, spec_json):
            raise Stale(f"job {job_id} has another share here: {share.index} of {share.shards}")
        share.fence(attempt)
        return share

    def get(self, job_id: str) -> Share:
        with self._lock:
            share = self._by_job.get(job_id)
        if share is None:
            raise NotFound(f"job '{job_id}' has no share on this parameter server")
        return share

    def drop(self, job_id: str, reason: str) -> bool:
        with self._lock:
            share = self._by_job.pop(job_id, None)
            self._metrics.shares.set(len(self._by_job))
        if share is None:
            return False
        share.drop(reason)
        self._metrics.weight_bytes.dec(share.weight_bytes)
        self._metrics.forget_job(job_id)
        return True

    def job_ids(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(self._by_job)

    def endpoint(self, hello: Hello) -> ShareEndpoint:
        share = self.get(hello.job_id)
        if hello.attempt != share.attempt:
            raise Stale(f"attempt {hello.attempt} of job {hello.job_id} is over: {share.attempt} runs")
        share.layout  # noqa: B018  # raises Refused before the first registration
        return share
