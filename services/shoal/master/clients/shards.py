"""The master's calls to parameter servers."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import grpc

from shoal.core.errors import Corrupt, DeadlineExceeded, InvalidInput, NotFound, Refused, Unavailable
from shoal.core.job import ShardAddress, ShardFile
from shoal.master.lead import Lead
from shoal.master.store.base import Evaluation
from shoal.wire.options import MEBIBYTE, UNARY_LIMIT_BYTES, open_aio_channel
from shoal.wire.v1 import shard_pb2, shard_pb2_grpc

_T = TypeVar("_T")
_PING_SECONDS = 1.0  # a server that lives answers in a few milliseconds


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardProgress:
    """One answer of a shard."""

    attempt: int
    version: int
    total_steps: int
    samples: int
    losses: tuple[tuple[int, float], ...]  # (step, loss), ascending
    evaluations: tuple[Evaluation, ...]  # all of them
    started: bool
    failure: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Restore:
    """What a new share is to be made of."""

    file: ShardFile
    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class InitialWeights:
    """What a job begins with: files of another job, and where each of them can be had."""

    job_id: str
    step: int
    files: tuple[tuple[ShardFile, ShardAddress], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Created:
    version: int
    made_in_attempt: int  # a lower one than asked for: the share has been there before
    started: bool  # the model is built


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A shard's part of a snapshot."""

    file: ShardFile | None  # None: it holds nothing of the model, or does not know yet that it does
    active_shards: int  # how many have a part, says this one; 0: it does not know


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

    def __init__(self, *, lead: Lead, call_seconds: float, snapshot_seconds: float) -> None:
        self._lead = lead
        self._call_seconds = call_seconds
        self._snapshot_seconds = snapshot_seconds
        self._calls = itertools.count(1)
        self._channels = Channels(limit_bytes=UNARY_LIMIT_BYTES)

    async def create_share(
        self,
        shard: ShardAddress,
        *,
        job_id: str,
        attempt: int,
        spec_json: str,
        shards: int,
        restore: Restore | None = None,
        start_over: bool = False,
        initial: InitialWeights | None = None,
    ) -> Created:
        """Raises Corrupt if the file to restore is not what it was; for the rest see shard.proto."""
        request = shard_pb2.CreateShareRequest(
            master_epoch=self._lead.epoch,
            job_id=job_id,
            attempt=attempt,
            spec_json=spec_json,
            shard_index=shard.index,
            shards=shards,
            restore=_file_message(restore.file, restore.step) if restore else None,
            start_over=start_over,
            call=next(self._calls),
            initial=_initial_message(initial) if initial else None,
        )
        seconds = self._snapshot_seconds if restore else self._call_seconds
        with self._lead.asking():
            answer = await self._stub(shard).CreateShare(request, timeout=seconds)
        return Created(version=answer.version, made_in_attempt=answer.made_in_attempt, started=answer.started)

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
            master_epoch=self._lead.epoch,
            job_id=job_id,
            from_version=from_version,
            wait_seconds=wait_seconds,
            known_evaluations=known_evaluations,
        )
        with self._lead.asking():
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

    async def snapshot(self, shard: ShardAddress, *, job_id: str, attempt: int, at_version: int = 0) -> Written:
        """Makes the share's file durable. Raises Missed if the version has passed."""
        request = shard_pb2.SnapshotRequest(
            master_epoch=self._lead.epoch, job_id=job_id, attempt=attempt, at_version=at_version
        )
        with self._lead.asking():
            answer = await self._stub(shard).Snapshot(request, timeout=self._snapshot_seconds)
        if not answer.file_name:
            return Written(file=None, active_shards=answer.active_shards)
        file = ShardFile(
            shard_index=shard.index,
            server_id=shard.server_id,
            file_name=answer.file_name,
            size=answer.size,
            sha256=answer.sha256,
        )
        return Written(file=file, active_shards=answer.active_shards)

    async def list_snapshots(self, shard: ShardAddress, *, job_id: str = "") -> dict[str, tuple[str, ...]]:
        """Names of the files there, by job; of one job, or of all."""
        request = shard_pb2.ListSnapshotsRequest(master_epoch=self._lead.epoch, job_id=job_id)
        with self._lead.asking():
            answer = await self._stub(shard).ListSnapshots(request, timeout=self._call_seconds)
        return {entry.job_id: tuple(entry.file_names) for entry in answer.jobs}

    async def delete_snapshots(self, shard: ShardAddress, *, job_id: str, names: Sequence[str]) -> None:
        request = shard_pb2.DeleteSnapshotsRequest(master_epoch=self._lead.epoch, job_id=job_id, file_names=names)
        with self._lead.asking():
            await self._stub(shard).DeleteSnapshots(request, timeout=self._call_seconds)

    async def read_snapshot(
        self, shard: ShardAddress, *, job_id: str, file: ShardFile, offset: int = 0
    ) -> AsyncGenerator[bytes, None]:
        """The file's bytes from `offset` on, at most 1 MiB at a time.

        Raises Corrupt if they are more or fewer than were written. At the file's end there is nothing to ask for.
        """
        reached = offset
        if reached == file.size:
            return
        request = shard_pb2.ReadSnapshotRequest(
            master_epoch=self._lead.epoch, job_id=job_id, file_name=file.file_name, offset=offset
        )
        with self._lead.asking():
            async for message in self._stub(shard).ReadSnapshot(request, timeout=self._snapshot_seconds):
                reached += len(message.data)
                for start in range(0, len(message.data), MEBIBYTE):
                    yield message.data[start : start + MEBIBYTE]
        if reached != file.size:
            raise Corrupt(f"{file.file_name} on {file.server_id}: {reached} bytes came, {file.size} were written")

    async def ping(self, shard: ShardAddress) -> None:
        """Returns if somebody answers there. Raises Unavailable or DeadlineExceeded."""
        request = shard_pb2.GetProgressRequest(master_epoch=self._lead.epoch, job_id="")
        with contextlib.suppress(NotFound, InvalidInput), self._lead.asking():
            await self._stub(shard).GetProgress(request, timeout=_PING_SECONDS)

    async def fence(
        self,
        shard: ShardAddress,
        *,
        job_id: str,
        attempt: int,
        incarnations: Sequence[str] = (),
        worker_ids: Sequence[str] = (),
    ) -> int:
        """How many links the shard has cut."""
        request = shard_pb2.FenceRequest(
            job_id=job_id,
            attempt=attempt,
            incarnations=incarnations,
            worker_ids=worker_ids,
            master_epoch=self._lead.epoch,
        )
        with self._lead.asking():
            answer = await self._stub(shard).Fence(request, timeout=self._call_seconds)
        return answer.sessions

    async def drop_share(self, shard: ShardAddress, *, job_id: str, delete_files: bool) -> None:
        request = shard_pb2.DropShareRequest(master_epoch=self._lead.epoch, job_id=job_id, delete_files=delete_files)
        with self._lead.asking():
            await self._stub(shard).DropShare(request, timeout=self._call_seconds)

    async def close(self) -> None:
        await self._channels.close()

    def _stub(self, shard: ShardAddress) -> "shard_pb2_grpc.ShardServiceAsyncStub":
        return shard_pb2_grpc.ShardServiceStub(self._channels.to(shard.host, shard.port))


def _file_message(file: ShardFile, step: int) -> shard_pb2.SnapshotFile:
    return shard_pb2.SnapshotFile(file_name=file.file_name, size=file.size, sha256=file.sha256, version=step)


def _initial_message(initial: InitialWeights) -> shard_pb2.InitialWeights:
    return shard_pb2.InitialWeights(
        job_id=initial.job_id,
        files=[
            shard_pb2.InitialFile(file=_file_message(file, initial.step), host=place.host, port=place.port)
            for file, place in initial.files
        ],
    )


def whole(parts: Sequence[Written]) -> tuple[ShardFile, ...]:
    """The files of a snapshot. Raises Refused unless there is one of each shard that holds a part of the model."""
    files = tuple(part.file for part in parts if part.file is not None)
    active = max((part.active_shards for part in parts), default=0)
    if len(files) < active:
        raise Refused(f"{active - len(files)} of {active} shards hold nothing yet: no worker has registered there")
    return files


async def each(shards: Sequence[ShardAddress], call: Callable[[ShardAddress], Awaitable[_T]]) -> list[_T]:
    """One call per shard, at the same time. Waits for all; raises the error that says most, if any failed."""
    outcomes = await asyncio.gather(*(call(shard) for shard in shards), return_exceptions=True)
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    errors.sort(key=lambda error: isinstance(error, Unavailable | DeadlineExceeded))
    if errors:
        raise errors[0]
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
