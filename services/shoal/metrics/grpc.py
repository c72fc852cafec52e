"""Server interceptors that count and time calls, under the names of go-grpc-prometheus.

`grpc_server_started_total`, `grpc_server_handled_total` and `grpc_server_handling_seconds`, so that existing dashboards
and alert rules fit. One interceptor for synchronous servers, one for grpc.aio. Every answer passes here, so here are
also the crash points around acknowledgements.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from prometheus_client import CollectorRegistry, Counter, Histogram

from shoal.process.crashing import crash_point, is_wanted

_LABELS = ["grpc_type", "grpc_service", "grpc_method"]
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_NAMES = {code.name: "".join(part.capitalize() for part in code.name.split("_")) for code in grpc.StatusCode}
_NAMES["OK"] = "OK"
_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Behaviour: TypeAlias = Callable[..., Any]


class GrpcServerMetrics:
    """Built once per role over its registry. Calls that poll for long show in the last buckets by design."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.started = Counter("grpc_server_started_total", "RPCs started on the server.", _LABELS, registry=registry)
        self.handled = Counter(
            "grpc_server_handled_total",
            "RPCs completed on the server, regardless of success or failure.",
            [*_LABELS, "grpc_code"],
            registry=registry,
        )
        self.seconds = Histogram(
            "grpc_server_handling_seconds",
            "Response latency of RPCs handled by the server, in seconds.",
            _LABELS,
            buckets=_BUCKETS,
            registry=registry,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Method:
    """One RPC method with its series."""

    metrics: GrpcServerMetrics
    labels: tuple[str, str, str]
    name: str  # as in the names of crash points: complete_job

    def begin(self) -> float:
        self.metrics.started.labels(*self.labels).inc()
        return time.perf_counter()

    def end(self, begun: float, code: str) -> None:
        self.metrics.handled.labels(*self.labels, code).inc()
        self.metrics.seconds.labels(*self.labels).observe(time.perf_counter() - begun)


def _method_of(metrics: GrpcServerMetrics, handler: _Handler, path: str) -> _Method:
    kinds = {
        (False, False): "unary",
        (True, False): "client_stream",
        (False, True): "server_stream",
        (True, True): "bidi_stream",
    }
    service, _, method = path.lstrip("/").rpartition("/")
    kind = kinds[bool(handler.request_streaming), bool(handler.response_streaming)]
    return _Method(metrics=metrics, labels=(kind, service, method), name=_snake(method))


def _snake(method: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", method).lower()


def _code_name(code: object, *, otherwise: grpc.StatusCode) -> str:
    """Of what a context holds: a StatusCode, a number, or nothing."""
    if isinstance(code, int):
        code = _BY_NUMBER.get(code, otherwise)
    return _NAMES[code.name if isinstance(code, grpc.StatusCode) else otherwise.name]


def _with_behaviour(
    handler: _Handler, unary: Callable[[_Behaviour], _Behaviour], stream: Callable[[_Behaviour], _Behaviour]
) -> _Handler:
    """The same handler with its behaviour wrapped, by the kind of its answer."""
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[bool(handler.request_streaming), bool(handler.response_streaming)]
    behaviour = handler.unary_unary or handler.stream_unary or handler.unary_stream or handler.stream_stream
    assert behaviour is not None
    wrapped = stream(behaviour) if handler.response_streaming else unary(behaviour)
    return make(
        wrapped, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
    )


class SyncMetricsInterceptor(grpc.ServerInterceptor):
    """For `grpc.server(..., interceptors=[...])`."""

    def __init__(self, metrics: GrpcServerMetrics) -> None:
        self._metrics = metrics

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], "_Handler | None"],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "_Handler | None":
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        method = _method_of(self._metrics, handler, handler_call_details.method)

        def unary(behaviour: _Behaviour) -> _Behaviour:
            def call(request: object, context: grpc.ServicerContext) -> object:
                begun = method.begin()
                otherwise = grpc.StatusCode.UNKNOWN
                try:
                    answer = behaviour(request, context)
                    otherwise = grpc.StatusCode.OK
                    crash_point(f"{method.name}.before_acknowledgement")
                    if is_wanted(acknowledged := f"{method.name}.acknowledged"):
                        context.add_callback(lambda: crash_point(acknowledged))
                    return answer
                finally:
                    method.end(begun, _code_name(_code_of(context), otherwise=otherwise))

            return call

        def stream(behaviour: _Behaviour) -> _Behaviour:
            def call(request: object, context: grpc.ServicerContext) -> Iterator[object]:
                begun = method.begin()
                otherwise = grpc.StatusCode.UNKNOWN
                try:
                    yield from behaviour(request, context)
                    otherwise = grpc.StatusCode.OK
                except GeneratorExit:
                    otherwise = grpc.StatusCode.CANCELLED
                    raise
                finally:
                    method.end(begun, _code_name(_code_of(context), otherwise=otherwise))

            return call

        return _with_behaviour(handler, unary, stream)


class AioMetricsInterceptor(grpc.aio.ServerInterceptor):
    """For `grpc.aio.server(interceptors=[...])`."""

    def __init__(self, metrics: GrpcServerMetrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["_Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "_Handler | None":
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = _method_of(self._metrics, handler, handler_call_details.method)

        def unary(behaviour: _Behaviour) -> _Behaviour:
            async def call(request: object, context: Any) -> object:
                begun = method.begin()
                otherwise = grpc.StatusCode.UNKNOWN
                try:
                    answer = await behaviour(request, context)
                    otherwise = grpc.StatusCode.OK
                    crash_point(f"{method.name}.before_acknowledgement")
                    if is_wanted(acknowledged := f"{method.name}.acknowledged"):
                        context.add_done_callback(lambda _: crash_point(acknowledged))
                    return answer
                except asyncio.CancelledError:
                    otherwise = grpc.StatusCode.CANCELLED
                    raise
                finally:
                    method.end(begun, _code_name(_code_of(context), otherwise=otherwise))

            return call

        def stream(behaviour: _Behaviour) -> _Behaviour:
            async def call(request: object, context: Any) -> AsyncIterator[object]:
                begun = method.begin()
                otherwise = grpc.StatusCode.UNKNOWN
                try:
                    async for answer in behaviour(request, context):
                        yield answer
                    otherwise = grpc.StatusCode.OK
                except (asyncio.CancelledError, GeneratorExit):
                    otherwise = grpc.StatusCode.CANCELLED
                    raise
                finally:
                    method.end(begun, _code_name(_code_of(context), otherwise=otherwise))

            return call

        return _with_behaviour(handler, unary, stream)


def _code_of(context: Any) -> object:
    """The status that the servicer has set so far; nothing (None or 0) for a call that just returns."""
    return context.code() or None
