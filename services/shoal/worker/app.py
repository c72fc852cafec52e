"""The composition root of a worker: builds every object and passes it by keyword."""

import asyncio
import signal
import socket

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from shoal.core.errors import Unavailable
from shoal.metrics.grpc import AioMetricsInterceptor, GrpcServerMetrics
from shoal.metrics.http import MetricsServer
from shoal.metrics.registry import new_registry
from shoal.metrics.worker import WorkerMetrics
from shoal.process.identity import host_to_tell, new_incarnation, write_ready_file
from shoal.wire.options import open_aio_channel, server_options
from shoal.wire.v1 import master_pb2_grpc, worker_pb2_grpc
from shoal.worker.agent import Agent
from shoal.worker.capabilities import detect
from shoal.worker.servicer import WorkerServicer
from shoal.worker.settings import WorkerSettings
from shoal.worker.trainers import WarmTrainers

_STOP_SECONDS = 1.0


async def serve(settings: WorkerSettings) -> None:
    """Runs until SIGTERM or SIGINT. Raises Unavailable if an address is taken."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    registry = new_registry()
    server = grpc.aio.server(
        options=server_options(), interceptors=[AioMetricsInterceptor(GrpcServerMetrics(registry))]
    )
    try:
        port = server.add_insecure_port(f"{settings.host}:{settings.port}")
    except RuntimeError as error:
        raise Unavailable(
            f"cannot listen on {settings.host}:{settings.port}: the port is in use or not allowed;"
            " choose another --port"
        ) from error
    registered: list[Agent] = []
    metrics_server = MetricsServer(
        host=settings.host,
        port=settings.metrics_port,
        registry=registry,
        ready=lambda: None if registered and registered[0].registered.is_set() else "not registered with the master",
    )
    incarnation = new_incarnation()
    channel = open_aio_channel(settings.master)
    agent = Agent(
        master=master_pb2_grpc.MasterServiceStub(channel),
        worker_id=settings.worker_id or f"{socket.gethostname()}-{port}",
        incarnation=incarnation,
        host=host_to_tell(listening_on=settings.host, advertised=settings.advertise_host),
        port=port,
        metrics_port=metrics_server.port,
        capabilities=detect(
            supported_models=settings.supported_models, max_concurrent_jobs=settings.max_concurrent_jobs
        ),
        warm=WarmTrainers(count=settings.warm_trainers, data_roots=settings.data_roots),
        poll_seconds=settings.poll_seconds,
        trainer_restarts=settings.trainer_restarts,
        hang_seconds=settings.hang_seconds,
        metrics=WorkerMetrics(registry),
    )
    registered.append(agent)
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(WorkerServicer(agent=agent), server)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    await server.start()
    await health_servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    running = asyncio.create_task(agent.run(), name="agent")
    structlog.get_logger().info("serving", port=port, metrics_port=metrics_server.port)
    if settings.ready_file:
        write_ready_file(
            settings.ready_file,
            host=host_to_tell(listening_on=settings.host, advertised=settings.advertise_host),
            port=port,
            metrics_port=metrics_server.port,
            incarnation=incarnation,
        )
    stopped = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()  # raises: an eternal task has ended
        await agent.leave(wait_seconds=settings.leave_seconds)
    finally:
        stopped.cancel()
        running.cancel()
        await asyncio.wait({running})
        await agent.close()
        await channel.close()
        await server.stop(_STOP_SECONDS)
        metrics_server.close()
