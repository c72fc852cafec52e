"""Asks silent members, on another connection, whether they live.

Only a definite answer counts: nobody listens at the address, another process does, or the very one answers. No answer
proves nothing, so it changes nothing.
"""

import asyncio
from collections.abc import Callable

from shoal.core.errors import ShoalError
from shoal.master.lead import Lead
from shoal.master.membership.members import Finding, Member, Members, Role
from shoal.master.tasks import Tasks
from shoal.metrics.master import MasterMetrics
from shoal.process.logs import get_logger
from shoal.wire.options import open_aio_channel
from shoal.wire.v1 import worker_pb2, worker_pb2_grpc


class Probes:
    def __init__(
        self,
        *,
        members: Members,
        lead: Lead,
        tasks: Tasks,
        metrics: MasterMetrics,
        kick: Callable[[], None],
        seconds: float,
    ) -> None:
        self._members = members
        self._lead = lead
        self._tasks = tasks
        self._metrics = metrics
        self._kick = kick
        self._seconds = seconds
        self._asked = 0
        self._log = get_logger()

    def ask(self, member: Member) -> None:
        """In the background; what is found goes to `members`."""
        self._asked += 1
        self._tasks.start(f"ask:{member.member_id}:{self._asked}", self._ask(member))

    async def _ask(self, member: Member) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                finding = await self._find_out(member)
        except TimeoutError:
            finding = Finding.SILENT
        self._metrics.probes.labels(finding=finding.value).inc()
        self._log.info("member_asked", member_id=member.member_id, finding=finding.value)
        self._members.found(member.member_id, member.incarnation, finding)
        self._kick()

    async def _find_out(self, member: Member) -> Finding:
        try:
            _, writer = await asyncio.open_connection(member.host, member.port)
        except ConnectionRefusedError:
            return Finding.GONE
        except (OSError, UnicodeError):  # no way there, or no such name now: that may be the network's fault
            return Finding.SILENT
        writer.close()
        if member.role is Role.PARAMETER_SERVER:
            return Finding.SILENT  # somebody listens; its heartbeats say who
        address = f"[{member.host}]:{member.port}" if ":" in member.host else f"{member.host}:{member.port}"
        async with open_aio_channel(address) as channel:
            request = worker_pb2.GetStatusRequest(master_epoch=self._lead.epoch)
            try:
                with self._lead.asking():
                    answer = await worker_pb2_grpc.WorkerServiceStub(channel).GetStatus(request, timeout=self._seconds)
            except ShoalError:
                return Finding.SILENT
        if not answer.incarnation:
            return Finding.SILENT
        return Finding.ALIVE if answer.incarnation == member.incarnation else Finding.GONE
