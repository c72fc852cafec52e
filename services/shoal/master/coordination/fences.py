"""Cuts off on the parameter servers whoever the master has counted as dead.

Until a shard has heard of it, a dead worker's push may still count there. That is no harm: a unit is the same, whoever
computed it, and counts once. From then on nothing of that incarnation changes anything.
"""

import asyncio

from shoal.core.errors import DeadlineExceeded, ShoalError, Unavailable
from shoal.core.job import ShardAddress
from shoal.master.clients.shards import ShardClient
from shoal.master.lifecycle.live import LiveJobs, Run
from shoal.master.membership.members import Member
from shoal.master.tasks import Tasks
from shoal.metrics.master import MasterMetrics
from shoal.process.logs import get_logger

_RETRY_SECONDS = 0.2  # between tries of a server that does not answer


class Fences:
    def __init__(self, *, live: LiveJobs, shards: ShardClient, tasks: Tasks, metrics: MasterMetrics) -> None:
        self._live = live
        self._shards = shards
        self._tasks = tasks
        self._metrics = metrics
        self._started = 0
        self._log = get_logger()

    def cut(self, worker: Member) -> None:
        """On every shard of every attempt that it has had a part of, for as long as that attempt runs."""
        if worker.known and not worker.incarnation:
            return  # a plain client, which has nothing to be cut off by
        for run in self._live.runs:
            if worker.member_id not in run.hosts:
                continue
            for shard in run.shards:
                self._started += 1
                self._tasks.start(f"fence:{run.job_id}:{self._started}", self._cut(run, shard, worker))

    async def _cut(self, run: Run, shard: ShardAddress, worker: Member) -> None:
        while self._live.is_current(run):
            try:
                sessions = await self._shards.fence(
                    shard,
                    job_id=run.job_id,
                    attempt=run.attempt,
                    incarnations=(worker.incarnation,) if worker.known else (),
                    worker_ids=() if worker.known else (worker.member_id,),
                )
            except (Unavailable, DeadlineExceeded):
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            except ShoalError as error:  # the share is gone, or a later attempt has it: the same to the dead
                self._log.info("not_fenced", job_id=run.job_id, server_id=shard.server_id, error=str(error))
                return
            self._metrics.fenced.inc()
            self._log.info(
                "worker_fenced",
                job_id=run.job_id,
                server_id=shard.server_id,
                worker_id=worker.member_id,
                incarnation=worker.incarnation,
                sessions=sessions,
            )
            return
