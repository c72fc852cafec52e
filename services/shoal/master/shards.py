"""The master's calls to parameter servers."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TypeVar

import grpc

from shoal.core.errors import Corrupt, DeadlineExceeded, InvalidInput, NotFound, Unavailable
from shoal.core.job import ShardAddress, ShardFile
from shoal.master.progress import ShardProgress
from shoal.master.store.base import Evaluation
from shoal.wire.options import MEBIBYTE, UNARY_LIMIT_BYTES, open_aio_channel
from shoal.wire.status import raised_from_call
from shoal.wire.v1 import shard_pb2, shard_pb2_grpc

_T = TypeVar("_T")
_PING_SECONDS = 1.0  # a server that lives answers in a few milliseconds


class Channels:
    """One channel per address, kept while it is used."""

    def __init__(self, *, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._channels: dict[str, grpc.aio.Channel] = {}

    def to(self, host: str, port: int) -> grpc.aio.Channel:
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if address not in self._channels:
            self._channels[address] = open_aio_channel(address, limit_bytes=self._limit_bytes)
        return self._channels[address]

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()


class ShardClient:
    """Each method is one call with a deadline. Raises the error that the server raised, or Unavailable."""

    def __init__(self, *, call_seconds: float, snapshot_seconds: float) -> None:
        self._call_seconds = call_seconds
        self._snapshot_seconds = snapshot_seconds
        self._channels = Channels(limit_bytes=UNARY_LIMIT_BYTES)

    async def create_share(self, shard: ShardAddress, *, job_id: str, attempt: int, spec_json: str, shards: int) -> int:
        """The version of the share: 0 of a new one."""
        request = shard_pb2.CreateShareRequest(
            job_id=job_id, attempt=attempt, spec_json=spec_json, shard_index=shard.index, shards=shards
        )
        with raised_from_call():
            answer = await self._stub(shard).CreateShare(request, timeout=self._call_seconds)
        return answer.version

    async def progress(
        self,
        shard: ShardAddress,
        *,
        job_id: str,
        from_version: int = 0,
        known_evaluations: int = 0,
        wait_seconds: float = 0.0,
    ) -> ShardProgress:
        request = shard_pb2.GetProgressRequest(
            job_id=job_id,
            from_version=from_version,
            wait_seconds=wait_seconds,
            known_evaluations=known_evaluations,
        )
        with raised_from_call():
            answer = await self._stub(shard).GetProgress(request, timeout=wait_seconds + self._call_seconds)
        return ShardProgress(
            attempt=answer.attempt,
            version=answer.version,
            total_steps=answer.total_steps,
            samples=answer.samples,
            losses=tuple((entry.step, entry.loss) for entry in answer.losses),
            evaluations=tuple(
                Evaluation(
                    version=entry.version,
                    accuracy=entry.correct / entry.samples if entry.samples else 0.0,
                    loss=entry.loss,
                )
                for entry in answer.evaluations
            ),
            started=answer.started,
            failure=answer.failure,
        )

    async def snapshot(self, shard: ShardAddress, *, job_id: str, attempt: int) -> ShardFile:
        request = shard_pb2.SnapshotRequest(job_id=job_id, attempt=attempt)
        with raised_from_call():
            answer = await self._stub(shard).Snapshot(request, timeout=self._snapshot_seconds)
        return ShardFile(
            shard_index=shard.index,
            server_id=shard.server_id,
            file_name=answer.file_name,
            size=answer.size,
            sha256=answer.sha256,
        )

    async def read_snapshot(
        self, shard: ShardAddress, *, job_id: str, file: ShardFile, offset: int = 0
    ) -> AsyncGenerator[bytes, None]:
        """The file's bytes from `offset` on, at most 1 MiB at a time.

        Raises Corrupt if they are more or fewer than were written. At the file's end there is nothing to ask for.
        """
        reached = offset
        if reached == file.size:
            return
        request = shard_pb2.ReadSnapshotRequest(job_id=job_id, file_name=file.file_name, offset=offset)
        with raised_from_call():
            async for message in self._stub(shard).ReadSnapshot(request, timeout=self._snapshot_seconds):
                reached += len(message.data)
                for start in range(0, len(message.data), MEBIBYTE):
                    yield message.data[start : start + MEBIBYTE]
        if reached != file.size:
            raise Corrupt(f"{file.file_name} on {file.server_id}: {reached} bytes came, {file.size} were written")

    async def ping(self, shard: ShardAddress) -> None:
        """Returns if somebody answers there. Raises Unavailable or DeadlineExceeded."""
        request = shard_pb2.GetProgressRequest(job_id="")
        with contextlib.suppress(NotFound, InvalidInput), raised_from_call():
            await self._stub(shard).GetProgress(request, timeout=_PING_SECONDS)

    async def drop_share(self, shard: ShardAddress, *, job_id: str, delete_files: bool) -> None:
        request = shard_pb2.DropShareRequest(job_id=job_id, delete_files=delete_files)
        with raised_from_call():
            await self._stub(shard).DropShare(request, timeout=self._call_seconds)

    async def close(self) -> None:
        await self._channels.close()

    def _stub(self, shard: ShardAddress) -> "shard_pb2_grpc.ShardServiceAsyncStub":
        return shard_pb2_grpc.ShardServiceStub(self._channels.to(shard.host, shard.port))


async def each(shards: Sequence[ShardAddress], call: Callable[[ShardAddress], Awaitable[_T]]) -> list[_T]:
    """One call per shard, at the same time. Waits for all; raises the error that says most, if any failed."""
    outcomes = await asyncio.gather(*(call(shard) for shard in shards), return_exceptions=True)
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    errors.sort(key=lambda error: isinstance(error, Unavailable | DeadlineExceeded))
    if errors:
        raise errors[0]
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
