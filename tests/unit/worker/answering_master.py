"""A MasterService that answers an agent as a test says: a real gRPC server without anything behind it.

A fake, because the agent's duty is what it does when the master is slow, restarted or of another opinion, and a real
master does none of that on command. The real one is met in tests/integration/worker.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import grpc

from shoal.wire.options import server_options
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
        return master_pb2.RegisterWorkerResponse(success=True, assigned_worker_id=request.worker_id)

    def SendHeartbeat(
        self, request: master_pb2.SendHeartbeatRequest, context: grpc.ServicerContext
    ) -> master_pb2.SendHeartbeatResponse:
        return master_pb2.SendHeartbeatResponse(success=True)

    def RequestJob(
        self, request: master_pb2.RequestJobRequest, context: grpc.ServicerContext
    ) -> master_pb2.RequestJobResponse:
        with self._changed:
            self._changed.wait_for(lambda: self.revision > request.known_revision, timeout=request.wait_seconds)
            return master_pb2.RequestJobResponse(assigned=bool(self.grants), revision=self.revision, grants=self.grants)

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
        self.lines += [line.text for line in request.lines]
        return master_pb2.ReportLogsResponse()
