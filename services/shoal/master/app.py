"""Builds the master. The one place that constructs its parts and hands them to one another."""

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from shoal.core.errors import Deposed, InvalidInput, Unavailable
from shoal.jobspec.reading import describe, validate_spec
from shoal.master.bound import Bound
from shoal.master.changes import Changes
from shoal.master.clients.shards import ShardClient
from shoal.master.clients.workers import WorkerClient
from shoal.master.coordination.coordinator import Coordinator
from shoal.master.coordination.fences import Fences
from shoal.master.coordination.incidents import Incidents
from shoal.master.coordination.registration import Registrar
from shoal.master.jobs import Jobs
from shoal.master.lead import Lead
from shoal.master.leadership import Leadership
from shoal.master.lifecycle.beginning import Beginnings
from shoal.master.lifecycle.completion import Completions
from shoal.master.lifecycle.endings import Endings
from shoal.master.lifecycle.following import Follower
from shoal.master.lifecycle.initial import InitialSources
from shoal.master.lifecycle.live import LiveJobs
from shoal.master.lifecycle.reopening import Reopening
from shoal.master.lifecycle.snapshots import Snapshots
from shoal.master.lifecycle.sweeping import Sweeper
from shoal.master.membership.members import Members, Timing
from shoal.master.membership.polls import Polls
from shoal.master.membership.probes import Probes
from shoal.master.scheduling.grants import GrantBook
from shoal.master.servicers.jobs import JobServicer
from shoal.master.servicers.master import MasterServicer
from shoal.master.settings import MasterSettings
from shoal.master.store.base import Database, JobStore, Limits
from shoal.master.store.opening import open_database
from shoal.master.store.timed import TimedJobStore
from shoal.master.tasks import Tasks
from shoal.metrics.grpc import AioMetricsInterceptor, GrpcServerMetrics
from shoal.metrics.http import MetricsServer
from shoal.metrics.master import MasterMetrics
from shoal.metrics.registry import new_registry
from shoal.process.clock import Clock, SystemClock
from shoal.process.identity import new_incarnation, write_ready_file
from shoal.process.logs import get_logger
from shoal.wire.options import server_options
from shoal.wire.v1 import jobs_pb2_grpc, master_pb2_grpc

if TYPE_CHECKING:
    from shoal.master.coordination.pods import PodWatch

_STOP_SECONDS = 0.5  # for calls in flight when the master stops: long polls would never end by themselves
_PRUNE_SECONDS = 600.0  # between looks for ended jobs that are too many
_REOPEN_SECONDS = 0.5  # between tries of a store whose server is not there yet

EX_SOFTWARE = 70
EX_TEMPFAIL = 75  # start it again: another master leads, or the store was not there


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """A master that runs."""

    port: int
    metrics_port: int
    incarnation: str
    epoch: int  # of its lead
    failed: "asyncio.Future[BaseException]"  # a part of it broke, or it leads no more: the process must not go on


@contextlib.asynccontextmanager
async def serving(settings: MasterSettings, *, clock: Clock) -> AsyncIterator[Serving]:
    """Runs a master for the length of the block, which begins when it leads.

    Raises InvalidInput for a port, folder or store it cannot have, and Refused for a store of a newer Shoal.
    """
    _check_defaults(settings)
    _check_port(settings.host, settings.port)
    ready = _Readiness()
    incarnation = new_incarnation()
    registry = new_registry()
    metrics = MasterMetrics(registry)
    async with contextlib.AsyncExitStack() as stack:
        http = MetricsServer(registry=registry, ready=ready.reason, host=settings.host, port=settings.metrics_port)
        stack.callback(http.close)
        database = await _open_database(settings, ready)
        stack.push_async_callback(database.close)
        tasks = Tasks()
        leadership = Leadership(
            database=database,
            clock=clock,
            incarnation=incarnation,
            host=socket.gethostname(),
            lease_seconds=settings.leadership_lease_seconds,
            lost=tasks.fail,
        )
        await leadership.win(waits=ready.waits)
        metrics.epoch.set(leadership.epoch)
        stack.push_async_callback(leadership.resign)
        tasks.start("leadership", leadership.keep())
        stack.push_async_callback(tasks.close)
        store: JobStore = TimedJobStore(database.jobs(leadership.epoch), metrics=metrics, deposed=leadership.lose)

        lead = Lead(epoch=leadership.epoch, lose=leadership.lose)
        shards = ShardClient(lead=lead, call_seconds=settings.call_seconds, snapshot_seconds=settings.snapshot_seconds)
        stack.push_async_callback(shards.close)
        workers = WorkerClient(lead=lead, tasks=tasks, push_seconds=settings.push_seconds)
        stack.push_async_callback(workers.close)
        stack.push_async_callback(tasks.close)

        kicked = asyncio.Event()
        changes = Changes()
        members = Members(
            clock=clock,
            timing=Timing(
                lease_seconds=settings.lease_seconds,
                suspect_grace_seconds=settings.suspect_grace_seconds,
                server_grace_seconds=settings.suspect_grace_seconds + 2 * settings.heartbeat_seconds,
                lost_kept_seconds=settings.lost_kept_seconds,
                probe_seconds=settings.probe_seconds,
            ),
            limit=settings.members_limit,
        )
        grants = GrantBook(first_revision=time.time_ns() // 1_000_000)
        live = LiveJobs(
            store=store,
            members=members,
            grants=grants,
            shards=shards,
            workers=workers,
            changes=changes,
            tasks=tasks,
            metrics=metrics,
            clock=clock,
            settings=settings,
            kick=kicked.set,
        )
        sweeper = Sweeper(
            live=live,
            store=store,
            members=members,
            shards=shards,
            tasks=tasks,
            clock=clock,
            ended_jobs_kept=settings.ended_jobs_kept,
            ended_snapshots_seconds=settings.ended_snapshots_seconds,
        )
        await sweeper.prune()
        endings = Endings(live=live, store=store, sweeper=sweeper, metrics=metrics, clock=clock)
        follower = Follower(
            live=live,
            endings=endings,
            store=store,
            members=members,
            shards=shards,
            tasks=tasks,
            metrics=metrics,
            clock=clock,
            settings=settings,
        )
        completions = Completions(
            live=live,
            endings=endings,
            follower=follower,
            store=store,
            members=members,
            grants=grants,
            shards=shards,
            sweeper=sweeper,
            tasks=tasks,
            clock=clock,
            settings=settings,
        )
        initial = InitialSources(store=store, members=members)
        beginnings = Beginnings(
            live=live,
            endings=endings,
            follower=follower,
            completions=completions,
            store=store,
            members=members,
            shards=shards,
            snapshots=Snapshots(
                live=live,
                store=store,
                members=members,
                shards=shards,
                sweeper=sweeper,
                tasks=tasks,
                metrics=metrics,
                clock=clock,
                settings=settings,
            ),
            initial=initial,
            tasks=tasks,
            clock=clock,
        )
        fences = Fences(live=live, shards=shards, tasks=tasks, metrics=metrics)
        coordinator = Coordinator(
            live=live,
            beginnings=beginnings,
            endings=endings,
            fences=fences,
            probes=Probes(
                members=members,
                lead=lead,
                tasks=tasks,
                metrics=metrics,
                kick=kicked.set,
                seconds=settings.probe_seconds,
            ),
            members=members,
            grants=grants,
            changes=changes,
            metrics=metrics,
            clock=clock,
            settings=settings,
            kicked=kicked,
        )
        jobs = Jobs(
            store=store,
            live=live,
            endings=endings,
            reopening=Reopening(live=live, store=store, clock=clock),
            initial=initial,
            coordinator=coordinator,
            members=members,
            shards=shards,
            changes=changes,
            metrics=metrics,
            clock=clock,
            settings=settings,
        )
        polls = Polls(grants=grants, members=members)
        incidents = Incidents(live=live, members=members, store=store, changes=changes, clock=clock)
        pod_watch = _pod_watch(settings, incidents)
        await beginnings.load()

        server = grpc.aio.server(
            options=server_options(), interceptors=[AioMetricsInterceptor(GrpcServerMetrics(registry))]
        )
        master_pb2_grpc.add_MasterServiceServicer_to_server(
            MasterServicer(
                members=members,
                registrar=Registrar(
                    members=members,
                    live=live,
                    polls=polls,
                    shards=shards,
                    fences=fences,
                    sweeper=sweeper,
                    kick=kicked.set,
                ),
                completions=completions,
                jobs=jobs,
                polls=polls,
                incidents=incidents,
                metrics=metrics,
                settings=settings,
                epoch=leadership.epoch,
                kick=kicked.set,
            ),
            server,
        )
        jobs_pb2_grpc.add_JobServiceServicer_to_server(
            JobServicer(jobs=jobs, members=members, grants=grants, streams=Bound("streams", settings.streams_limit)),
            server,
        )
        health_service = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
        await health_service.set("", health_pb2.HealthCheckResponse.SERVING)
        try:
            port = server.add_insecure_port(_address(settings.host, settings.port))
        except RuntimeError as error:
            raise _port_error(settings.host, settings.port, str(error)) from error
        await server.start()
        stack.push_async_callback(server.stop, _STOP_SECONDS)

        tasks.start("coordinator", coordinator.run())
        tasks.start("prune", _prune(sweeper))
        if pod_watch is not None:
            tasks.start("pods", pod_watch.run())
        ready.waits("")
        try:
            yield Serving(
                port=port,
                metrics_port=http.port,
                incarnation=incarnation,
                epoch=leadership.epoch,
                failed=tasks.failed,
            )
        finally:
            ready.waits("stopping")
            await leadership.resign()  # first: a standby takes over while the calls in flight come to their ends


async def run(settings: MasterSettings) -> int:
    """Serves until SIGTERM or SIGINT, or until another master leads; the process' exit code."""
    log = get_logger()
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        starting = loop.create_task(stack.enter_async_context(serving(settings, clock=SystemClock())), name="start")

        def on_signal() -> None:
            stop.set()
            starting.cancel()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        try:
            master = await starting
        except asyncio.CancelledError:
            log.info("master_stops", reason="signal")
            return 0
        if settings.ready_file is not None:
            write_ready_file(
                settings.ready_file,
                host=settings.host,
                port=master.port,
                metrics_port=master.metrics_port,
                incarnation=master.incarnation,
            )
        log.info(
            "master_serves",
            host=settings.host,
            port=master.port,
            metrics_port=master.metrics_port,
            epoch=master.epoch,
        )
        master.failed.add_done_callback(lambda _: stop.set())
        await stop.wait()
        if not master.failed.done():
            log.info("master_stops", reason="signal")
            return 0
        error = master.failed.result()
        if isinstance(error, Deposed):
            log.error("master_deposed", reason=str(error))
            return EX_TEMPFAIL
        log.info("master_stops", reason="a part of it broke")
        return EX_SOFTWARE


class _Readiness:
    def __init__(self) -> None:
        self._reason = "starting"

    def waits(self, reason: str) -> None:
        """'': it serves."""
        self._reason = reason

    def reason(self) -> str | None:
        return self._reason or None


async def _open_database(settings: MasterSettings, ready: _Readiness) -> Database:
    """Waits for a server that is not there (yet), for as long as it takes."""
    said = ""
    while True:
        try:
            return await open_database(
                settings.store_url,
                limits=Limits(log_lines=settings.log_lines_kept, events=settings.events_kept),
                connections=settings.store_connections,
                timeout_seconds=settings.store_timeout_seconds,
                lease_seconds=settings.leadership_lease_seconds,
            )
        except Unavailable as error:
            reason = str(error)
        ready.waits(reason)
        if reason != said:
            get_logger().warning("store_unavailable", error=reason)
            said = reason
        await asyncio.sleep(_REOPEN_SECONDS)


async def _prune(sweeper: Sweeper) -> None:
    while True:
        await asyncio.sleep(_PRUNE_SECONDS)
        try:
            await sweeper.prune()
        except Unavailable as error:
            get_logger().warning("store_unavailable", error=str(error))


def _pod_watch(settings: MasterSettings, incidents: Incidents) -> "PodWatch | None":
    if not settings.kubernetes_namespace:
        return None
    from shoal.master.coordination.pods import PodWatch

    return PodWatch(namespace=settings.kubernetes_namespace, selector=settings.kubernetes_selector, incidents=incidents)


def _check_defaults(settings: MasterSettings) -> None:
    """The cluster's defaults must make a valid job of one that names nothing."""
    import pydantic

    try:
        validate_spec({"model": {"type": "mlp"}}).with_defaults(settings.training_config)
    except pydantic.ValidationError as error:
        raise describe(error, origin="the cluster's defaults (TrainingConfig)") from error


def _check_port(host: str, port: int) -> None:
    """gRPC's own report of a port in use is several lines long."""
    if port == 0:
        return
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise _port_error(host, port, error.strerror or str(error)) from error


def _port_error(host: str, port: int, why: str) -> InvalidInput:
    return InvalidInput(f"port {port} on {host}: {why}; choose another with --port", field="port")


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
