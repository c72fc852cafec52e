"""From a grant to links: registers with every shard and picks each pair's transport."""

import grpc
import structlog

from shoal.core.errors import Corrupt, Unavailable
from shoal.core.facts import DatasetFacts
from shoal.core.job import Grant
from shoal.core.layout import Layout
from shoal.process.identity import host_id
from shoal.wire.convert import facts_to_proto
from shoal.wire.exchange.base import Hello, ShardLink
from shoal.wire.exchange.grpc_stream import GrpcLink
from shoal.wire.exchange.memory import CAN_SHARE
from shoal.wire.exchange.shared_memory import SharedMemoryLink
from shoal.wire.options import UNARY_LIMIT_BYTES, open_channel
from shoal.wire.status import raised_from_call
from shoal.wire.v1 import parameter_server_pb2, parameter_server_pb2_grpc

_REGISTER_SECONDS = 60.0  # the first trainer to register makes the shard build the model


def attach(
    *, grant: Grant, worker_id: str, incarnation: str, facts: DatasetFacts, layout: Layout, transport: str
) -> list[ShardLink]:
    """Links to `layout.active`, in order. Raises Unavailable, Stale, or InvalidInput if the dataset differs."""
    hello = Hello(job_id=grant.job_id, worker_id=worker_id, incarnation=incarnation, attempt=grant.attempt)
    by_index = {shard.index: shard for shard in grant.shards}
    links: list[ShardLink] = []
    for held in layout.active:
        shard = by_index[held.index]
        channel = open_channel(f"{shard.host}:{shard.port}", limit_bytes=UNARY_LIMIT_BYTES)
        answer = _register(channel, hello, facts)
        layers = {(part.layer_name, part.first, part.last) for part in answer.layers}
        if layers != {(piece.layer.name, piece.first, piece.last) for piece in held.slices}:
            raise Corrupt(f"shard {held.index} has another layout: master, worker and shard run different releases")
        links.append(_link(channel, hello, answer, held.length, transport))
    return links


def _register(channel: grpc.Channel, hello: Hello, facts: DatasetFacts) -> parameter_server_pb2.RegisterWorkerResponse:
    stub = parameter_server_pb2_grpc.ParameterServerServiceStub(channel)
    with raised_from_call():
        return stub.RegisterWorker(
            parameter_server_pb2.RegisterWorkerRequest(
                worker_id=hello.worker_id,
                job_id=hello.job_id,
                incarnation=hello.incarnation,
                attempt=hello.attempt,
                dataset=facts_to_proto(facts),
            ),
            timeout=_REGISTER_SECONDS,
            wait_for_ready=True,
        )


def _link(
    channel: grpc.Channel,
    hello: Hello,
    answer: parameter_server_pb2.RegisterWorkerResponse,
    length: int,
    transport: str,
) -> ShardLink:
    log = structlog.get_logger()
    address = answer.shared_memory_address
    if transport == "auto" and CAN_SHARE and address and answer.host_id == host_id():
        try:
            link = SharedMemoryLink(address, hello)
            log.info("attached", transport="shared_memory", shard=answer.shard_index)
            return link
        except Unavailable as error:
            log.info("shared_memory_unavailable", reason=str(error), shard=answer.shard_index)
    log.info("attached", transport="grpc", shard=answer.shard_index)
    return GrpcLink(channel, hello, length)
