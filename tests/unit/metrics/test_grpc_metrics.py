"""The interceptors, around real servers of both kinds."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from concurrent import futures

import grpc
import pytest
from prometheus_client import CollectorRegistry

from shoal.core.errors import NotFound
from shoal.metrics.grpc import AioMetricsInterceptor, GrpcServerMetrics, SyncMetricsInterceptor
from shoal.wire.status import answered, answered_async
from shoal.wire.v1 import jobs_pb2, jobs_pb2_grpc

SERVICE = "shoal.jobs.v1.JobService"


class Sync(jobs_pb2_grpc.JobServiceServicer):
    def Get(self, request, context):
        with answered(context):
            if request.job_id == "absent":
                raise NotFound("absent")
            if request.job_id == "broken":
                raise ValueError("a fault")
            return jobs_pb2.Job(job_id=request.job_id)

    def Watch(self, request, context):
        for step in range(3):
            yield jobs_pb2.Job(step=step)


class Aio(jobs_pb2_grpc.JobServiceServicer):
    async def Get(self, request, context):
        async with answered_async(context):
            if request.job_id == "absent":
                raise NotFound("absent")
            if request.job_id == "broken":
                raise ValueError("a fault")
            return jobs_pb2.Job(job_id=request.job_id)

    async def Watch(self, request, context):
        for step in range(3):
            yield jobs_pb2.Job(step=step)


@contextlib.contextmanager
def sync_server(registry: CollectorRegistry) -> Iterator[int]:
    with futures.ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, interceptors=[SyncMetricsInterceptor(GrpcServerMetrics(registry))])
        jobs_pb2_grpc.add_JobServiceServicer_to_server(Sync(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield port
        server.stop(None).wait()


@contextlib.asynccontextmanager
async def aio_server(registry: CollectorRegistry) -> AsyncIterator[int]:
    server = grpc.aio.server(interceptors=[AioMetricsInterceptor(GrpcServerMetrics(registry))])
    jobs_pb2_grpc.add_JobServiceServicer_to_server(Aio(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield port
    await server.stop(None)


async def ask(port: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = jobs_pb2_grpc.JobServiceStub(channel)
        await stub.Get(jobs_pb2.GetRequest(job_id="j"), timeout=10)
        for job_id in ("absent", "broken"):
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.Get(jobs_pb2.GetRequest(job_id=job_id), timeout=10)
        assert len([job async for job in stub.Watch(jobs_pb2.WatchRequest(), timeout=10)]) == 3
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Cancel(jobs_pb2.CancelRequest(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def handled(registry, kind, method, code):
    labels = {"grpc_type": kind, "grpc_service": SERVICE, "grpc_method": method, "grpc_code": code}
    return registry.get_sample_value("grpc_server_handled_total", labels)


@pytest.mark.parametrize("kind", ["sync", "aio"])
async def test_calls_are_counted_by_method_and_code(kind):
    registry = CollectorRegistry()
    if kind == "sync":
        with sync_server(registry) as port:
            await ask(port)
    else:
        async with aio_server(registry) as port:
            await ask(port)
    assert handled(registry, "unary", "Get", "OK") == 1
    assert handled(registry, "unary", "Get", "NotFound") == 1
    assert handled(registry, "unary", "Get", "Unknown") == 1
    assert handled(registry, "server_stream", "Watch", "OK") == 1
    assert handled(registry, "unary", "Cancel", "Unimplemented") == 1
    started = {"grpc_type": "unary", "grpc_service": SERVICE, "grpc_method": "Get"}
    assert registry.get_sample_value("grpc_server_started_total", started) == 3
    assert registry.get_sample_value("grpc_server_handling_seconds_count", started) == 3
