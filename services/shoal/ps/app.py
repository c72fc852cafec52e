"""The composition root of a parameter server: builds every object and passes it by keyword."""

import signal
import socket
import threading
from concurrent import futures

import grpc
import structlog
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from shoal.core.errors import Unavailable
from shoal.metrics.grpc import GrpcServerMetrics, SyncMetricsInterceptor
from shoal.metrics.http import MetricsServer
from shoal.metrics.parameter_server import ParameterServerMetrics
from shoal.metrics.registry import new_registry
from shoal.process.identity import host_id, host_to_tell, new_incarnation, write_ready_file
from shoal.ps.membership import Membership
from shoal.ps.servicer import ParameterServerServicer, ShardServicer
from shoal.ps.settings import PsSettings
from shoal.ps.shares import Shares
from shoal.ps.snapshot import Snapshots
from shoal.ps.targets.opening import open_target
from shoal.wire.epochs import MasterEpochs
from shoal.wire.exchange.grpc_stream import GrpcExchangeServer
from shoal.wire.exchange.memory import CAN_SHARE
from shoal.wire.exchange.shared_memory import SharedMemoryServer
from shoal.wire.options import UNARY_LIMIT_BYTES, server_options
from shoal.wire.v1 import parameter_server_pb2_grpc, shard_pb2_grpc

_STOP_SECONDS = 0.5  # for calls in flight: the shares are gone by then, and a download goes on elsewhere


class ParameterServer:
    """One running parameter server. Raises Unavailable if an address is taken."""

    def __init__(self, settings: PsSettings) -> None:
        torch.set_num_threads(1)  # more would cut an update into chunks whose scalar tails round differently
        self._log = structlog.get_logger()
        registry = new_registry()
        metrics = ParameterServerMetrics(registry)
        self._snapshots = Snapshots(open_target(settings.snapshot_target, data_dir=settings.data_dir), metrics=metrics)
        if left := self._snapshots.clean():
            self._log.info("half_written_snapshots_removed", files=left)
        self.shares = Shares(snapshots=self._snapshots, metrics=metrics, memory_bytes=settings.memory_bytes)
        self.incarnation = new_incarnation()
        epochs = MasterEpochs()
        self._shared_memory = SharedMemoryServer(self.shares) if settings.shared_memory and CAN_SHARE else None
        self._server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=settings.max_streams, thread_name_prefix="grpc"),
            options=server_options(limit_bytes=UNARY_LIMIT_BYTES),
            interceptors=[SyncMetricsInterceptor(GrpcServerMetrics(registry))],
        )
        parameter_server_pb2_grpc.add_ParameterServerServiceServicer_to_server(
            ParameterServerServicer(
                shares=self.shares,
                host_id=host_id(),
                shared_memory_address=self._shared_memory.address if self._shared_memory else "",
            ),
            self._server,
        )
        shard_pb2_grpc.add_ShardServiceServicer_to_server(
            ShardServicer(shares=self.shares, snapshots=self._snapshots, epochs=epochs, metrics=metrics), self._server
        )
        self._server.add_generic_rpc_handlers((GrpcExchangeServer(self.shares).handler,))
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        try:
            self.port = self._server.add_insecure_port(f"{settings.host}:{settings.port}")
        except RuntimeError as error:
            raise Unavailable(
                f"cannot listen on {settings.host}:{settings.port}: the port is in use or not allowed;"
                " choose another --port"
            ) from error
        self._server.start()
        self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        self._membership: Membership | None = None
        self._metrics_server = MetricsServer(
            host=settings.host, port=settings.metrics_port, registry=registry, ready=self._not_ready
        )
        self.metrics_port = self._metrics_server.port
        host = host_to_tell(listening_on=settings.host, advertised=settings.advertise_host)
        self._membership = Membership(
            master=settings.master,
            server_id=settings.server_id or f"{socket.gethostname()}-{self.port}",
            incarnation=self.incarnation,
            host=host,
            port=self.port,
            metrics_port=self.metrics_port,
            heartbeat_seconds=settings.heartbeat_seconds,
            job_ids=self.shares.job_ids,
            epochs=epochs,
        )
        self._log.info("serving", port=self.port, metrics_port=self.metrics_port)
        if settings.ready_file:
            write_ready_file(
                settings.ready_file,
                host=host,
                port=self.port,
                metrics_port=self.metrics_port,
                incarnation=self.incarnation,
            )

    def _not_ready(self) -> str | None:
        if self._membership is None or not self._membership.registered.is_set():
            return "not registered with the master"
        return None

    def close(self) -> None:
        """A snapshot that is just being written is given up: the job goes on from the one before."""
        self._snapshots.stop()
        if self._membership is not None:
            self._membership.close()
        for job_id in self.shares.job_ids():
            self.shares.drop(job_id, "the parameter server is shutting down")
        self._server.stop(grace=_STOP_SECONDS).wait()
        if self._shared_memory is not None:
            self._shared_memory.close()
        self._metrics_server.close()


def run(settings: PsSettings) -> None:
    """Serves until SIGTERM or SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server = ParameterServer(settings)
    stop.wait()
    server.close()
