"""A MasterService that answers an agent as a test says: a real gRPC server without anything behind it.

A fake, because the agent's duty is what it does when the master is slow, restarted or of another opinion, and a real
master does none of that on command. The real one is met in tests/integration/worker.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import grpc

from shoal.core.errors import FencedOff
from shoal.wire.options import server_options
from shoal.wire.status import abort_with
from shoal.wire.v1 import master_pb2, master_pb2_grpc


class AnsweringMaster(master_pb2_grpc.MasterServiceServicer):
    def __init__(self) -> None:
        self.grants: list[master_pb2.Grant] = []
        self.revision = 1
        self.reports: list[master_pb2.CompleteJobRequest] = []
        self.answer_report: Callable[[int], bool] = lambda _: True  # by number, from 1: is it accepted?
        self.lines: list[str] = []
        self.log_calls = 0
        self.logs_may_pass = threading.Event()  # until then, a call with log lines is not answered
        self.logs_may_pass.set()
        self.log_calls_to_fail = 0
        self.log_calls_to_refuse = 0
        self.epoch = 1
        self.lease_seconds = 0.0  # 0: it does not say
        self.silent = False  # as if it were not there
        self.dead: set[str] = set()  # incarnations that it counts as lost
        self.registered: list[str] = []  # incarnations, in order
        self.departed: list[str] = []  # incarnations that said that they end
        self.unanswered = 0  # calls while it was silent
        self._changed = threading.Condition()
        self._server: grpc.Server | None = None
        self.address = ""

    def __enter__(self) -> Self:
        self._server = grpc.server(ThreadPoolExecutor(8), options=server_options())
        master_pb2_grpc.add_MasterServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.logs_may_pass.set()
        assert self._server is not None
        self._server.stop(0).wait()

    def grant(self, *grants: master_pb2.Grant) -> None:
        """The whole list from now on."""
        with self._changed:
            self.revision += 1
            self.grants = [*grants]
            for grant in self.grants:
                grant.revision = self.revision
            self._changed.notify_all()

    def RegisterWorker(
        self, request: master_pb2.RegisterWorkerRequest, context: grpc.ServicerContext
    ) -> master_pb2.RegisterWorkerResponse:
        self._speak(context)
        if request.incarnation in self.dead:
            abort_with(context, FencedOff(f"incarnation {request.incarnation} has been counted as dead"))
        self.registered.append(request.incarnation)
        return master_pb2.RegisterWorkerResponse(
            success=True,
            assigned_worker_id=request.worker_id,
            heartbeat_seconds=0.1,
            lease_seconds=self.lease_seconds,
            master_epoch=self.epoch,
        )

    def _speak(self, context: grpc.ServicerContext) -> None:
        if self.silent:
            self.unanswered += 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "nobody is here")

    def SendHeartbeat(
        self, request: master_pb2.SendHeartbeatRequest, context: grpc.ServicerContext
    ) -> master_pb2.SendHeartbeatResponse:
        self._speak(context)
        if request.presence == master_pb2.PRESENCE_LEFT:
            self.departed.append(request.incarnation)
        known = request.incarnation not in self.dead
        return master_pb2.SendHeartbeatResponse(success=known, master_epoch=self.epoch)

    def RequestJob(
        self, request: master_pb2.RequestJobRequest, context: grpc.ServicerContext
    ) -> master_pb2.RequestJobResponse:
        self._speak(context)
        if request.incarnation in self.dead:
            return master_pb2.RequestJobResponse(master_epoch=self.epoch)
        with self._changed:
            self._changed.wait_for(lambda: self.revision > request.known_revision, timeout=request.wait_seconds)
            return master_pb2.RequestJobResponse(
                assigned=bool(self.grants), revision=self.revision, grants=self.grants, master_epoch=self.epoch
            )

    def CompleteJob(
        self, request: master_pb2.CompleteJobRequest, context: grpc.ServicerContext
    ) -> master_pb2.CompleteJobResponse:
        self.reports.append(request)
        accepted = self.answer_report(len(self.reports))
        message = "stored" if accepted else f"worker '{request.worker_id}' not recognized: register again"
        return master_pb2.CompleteJobResponse(success=accepted, message=message)

    def ReportLogs(
        self, request: master_pb2.ReportLogsRequest, context: grpc.ServicerContext
    ) -> master_pb2.ReportLogsResponse:
        self.log_calls += 1
        self.logs_may_pass.wait()
        if self.log_calls_to_fail:
            self.log_calls_to_fail -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        if self.log_calls_to_refuse:
            self.log_calls_to_refuse -= 1
            return master_pb2.ReportLogsResponse(success=False, message="worker not recognized: register again")
        self.lines += [line.text for line in request.lines]
        return master_pb2.ReportLogsResponse(success=True)
