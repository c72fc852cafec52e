"""Keeps a parameter server known to the master: registration, heartbeats, registration again when forgotten."""

import random
import threading
from collections.abc import Callable

import structlog

from shoal.core.errors import DeadlineExceeded, ShoalError, Unavailable
from shoal.process.load import LoadMeter
from shoal.process.threads import start_thread
from shoal.wire.epochs import MasterEpochs
from shoal.wire.options import open_channel
from shoal.wire.status import raised_from_call
from shoal.wire.v1 import master_pb2, master_pb2_grpc

_CALL_SECONDS = 5.0
_GOODBYE_SECONDS = 1.0  # for the last word: nobody waits long for a master that does not hear it
_RETRY_SECONDS = 0.2  # first wait; doubles
_RETRY_LIMIT_SECONDS = 1.0


class Membership:
    """`registered` tells whether the master knows this process now."""

    def __init__(
        self,
        *,
        master: str,
        server_id: str,
        incarnation: str,
        host: str,
        port: int,
        metrics_port: int,
        heartbeat_seconds: float,
        job_ids: Callable[[], tuple[str, ...]],
        epochs: MasterEpochs,
    ) -> None:
        self._channel = open_channel(master)
        self._stub = master_pb2_grpc.MasterServiceStub(self._channel)
        self._registration = master_pb2.RegisterWorkerRequest(
            worker_id=server_id,
            host=host,
            port=port,
            incarnation=incarnation,
            role=master_pb2.ROLE_PARAMETER_SERVER,
            metrics_port=metrics_port,
        )
        self._heartbeat_seconds = heartbeat_seconds
        self._job_ids = job_ids
        self._epochs = epochs
        self._load = LoadMeter()
        self._stopping = threading.Event()
        self.registered = threading.Event()
        self._log = structlog.get_logger().bind(server_id=server_id)
        self._thread = start_thread("membership", self._run)

    def close(self) -> None:
        """Says to the master, if it hears, that this server ends."""
        self._stopping.set()
        self._thread.join(timeout=_CALL_SECONDS + 1)
        if self.registered.is_set():
            try:
                with raised_from_call():
                    self._beat(master_pb2.PRESENCE_LEFT, timeout=_GOODBYE_SECONDS)
            except ShoalError as error:
                self._log.info("goodbye_not_heard", error=str(error))
        self._channel.close()

    def _run(self) -> None:
        retry = _RETRY_SECONDS
        told = ""
        while not self._stopping.is_set():
            try:
                with raised_from_call():
                    if not self.registered.is_set():
                        self._register()
                    self._beat()
                retry, told = _RETRY_SECONDS, ""
                self._stopping.wait(self._heartbeat_seconds)
            except (Unavailable, DeadlineExceeded) as error:
                if str(error) != told:
                    self._log.warning("master_unreachable", error=str(error))
                    told = str(error)
                self._stopping.wait(retry * random.uniform(0.5, 1.0))  # so that not all call at one moment
                retry = min(retry * 2, _RETRY_LIMIT_SECONDS)
            except ShoalError as error:
                self._log.error("master_refused", error=str(error))
                self._stopping.wait(_RETRY_LIMIT_SECONDS)

    def _register(self) -> None:
        answer = self._stub.RegisterWorker(self._registration, timeout=_CALL_SECONDS)
        self._epochs.check(answer.master_epoch)
        if not answer.success:
            raise Unavailable(answer.message)
        self._registration.worker_id = answer.assigned_worker_id
        if answer.heartbeat_seconds:
            self._heartbeat_seconds = answer.heartbeat_seconds
        self.registered.set()
        self._log.info("registered", assigned_id=answer.assigned_worker_id)

    def _beat(
        self,
        presence: "master_pb2.Presence.ValueType" = master_pb2.PRESENCE_UNSPECIFIED,
        *,
        timeout: float = _CALL_SECONDS,
    ) -> None:
        answer = self._stub.SendHeartbeat(
            master_pb2.SendHeartbeatRequest(
                worker_id=self._registration.worker_id,
                incarnation=self._registration.incarnation,
                status=master_pb2.WorkerStatus(
                    cpu_load=self._load.cpu_percent(),
                    memory_usage=self._load.memory_percent(),
                    current_jobs=len(self._job_ids()),
                ),
                presence=presence,
            ),
            timeout=timeout,
        )
        self._epochs.check(answer.master_epoch)
        if not answer.success:
            self.registered.clear()
