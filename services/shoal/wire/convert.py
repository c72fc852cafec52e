"""Between messages and domain dataclasses: the only place that knows both."""

from collections.abc import Mapping

from shoal.core.facts import DatasetFacts
from shoal.core.job import Capabilities, Failure, Grant, Load, Progress, Results, ShardAddress
from shoal.wire.v1 import master_pb2, parameter_server_pb2

_FAILURES_TO_PROTO = {
    Failure.RETRIED: master_pb2.FAILURE_UNSPECIFIED,
    Failure.FATAL: master_pb2.FAILURE_FATAL,
    Failure.KILLED: master_pb2.FAILURE_KILLED,
}
_FAILURES_FROM_PROTO = {value: noun for noun, value in _FAILURES_TO_PROTO.items()}


def capabilities_to_proto(noun: Capabilities) -> master_pb2.WorkerCapabilities:
    return master_pb2.WorkerCapabilities(
        has_gpu=noun.has_gpu,
        supported_models=sorted(noun.supported_models),
        max_concurrent_jobs=noun.max_concurrent_jobs,
    )


def capabilities_from_proto(message: master_pb2.WorkerCapabilities) -> Capabilities:
    return Capabilities(
        has_gpu=message.has_gpu,
        supported_models=frozenset(message.supported_models),
        max_concurrent_jobs=message.max_concurrent_jobs,
    )


def load_to_proto(noun: Load) -> master_pb2.WorkerStatus:
    return master_pb2.WorkerStatus(
        cpu_load=noun.cpu_percent, memory_usage=noun.memory_percent, current_jobs=noun.current_jobs
    )


def load_from_proto(message: master_pb2.WorkerStatus) -> Load:
    return Load(cpu_percent=message.cpu_load, memory_percent=message.memory_usage, current_jobs=message.current_jobs)


def progress_to_proto(noun: Progress) -> master_pb2.JobProgress:
    return master_pb2.JobProgress(
        job_id=noun.job_id,
        attempt=noun.attempt,
        step=noun.step,
        seconds_per_unit=noun.seconds_per_unit,
        restarts=noun.restarts,
        last_crash=noun.last_crash,
    )


def progress_from_proto(message: master_pb2.JobProgress) -> Progress:
    return Progress(
        job_id=message.job_id,
        attempt=message.attempt,
        step=message.step,
        seconds_per_unit=message.seconds_per_unit,
        restarts=message.restarts,
        last_crash=message.last_crash,
    )


def grant_to_proto(noun: Grant, hyperparameters: Mapping[str, str], dataset: str, model_type: str) -> master_pb2.Grant:
    """`hyperparameters`, `dataset` and `model_type` repeat the spec for clients that read only JobParameters."""
    return master_pb2.Grant(
        job_id=noun.job_id,
        attempt=noun.attempt,
        revision=noun.revision,
        parameters=master_pb2.JobParameters(
            dataset_path=dataset,
            model_type=model_type,
            hyperparameters=dict(hyperparameters),
            spec_json=noun.spec_json,
        ),
        first_rank=noun.first_rank,
        last_rank=noun.last_rank,
        shards=[
            master_pb2.ShardAddress(shard_id=shard.server_id, host=shard.host, port=shard.port, index=shard.index)
            for shard in noun.shards
        ],
    )


def grant_from_proto(message: master_pb2.Grant) -> Grant:
    return Grant(
        job_id=message.job_id,
        attempt=message.attempt,
        revision=message.revision,
        spec_json=message.parameters.spec_json,
        first_rank=message.first_rank,
        last_rank=message.last_rank,
        shards=tuple(
            ShardAddress(server_id=shard.shard_id, host=shard.host, port=shard.port, index=shard.index)
            for shard in message.shards
        ),
    )


def results_to_proto(noun: Results) -> master_pb2.JobResults:
    return master_pb2.JobResults(
        accuracy=noun.accuracy,
        loss=noun.loss,
        metrics=dict(noun.metrics),
        success=noun.success,
        errors=list(noun.errors),
        weights_sha256=noun.weights_sha256,
        steps=noun.steps,
        samples=noun.samples,
    )


def results_from_proto(message: master_pb2.JobResults) -> Results:
    return Results(
        success=message.success,
        accuracy=message.accuracy,
        loss=message.loss,
        metrics=dict(message.metrics),
        errors=tuple(message.errors),
        weights_sha256=message.weights_sha256,
        steps=message.steps,
        samples=message.samples,
    )


def failure_to_proto(noun: Failure) -> master_pb2.Failure.ValueType:
    return _FAILURES_TO_PROTO[noun]


def failure_from_proto(value: master_pb2.Failure.ValueType) -> Failure:
    """One that is not known, of a newer worker, is as if it said nothing."""
    return _FAILURES_FROM_PROTO.get(value, Failure.RETRIED)


def facts_to_proto(noun: DatasetFacts) -> parameter_server_pb2.DatasetFacts:
    return parameter_server_pb2.DatasetFacts(
        train_samples=noun.train_samples,
        heldout_samples=noun.heldout_samples,
        input_shape=list(noun.input_shape),
        classes=noun.classes,
        fingerprint=noun.fingerprint,
    )


def facts_from_proto(message: parameter_server_pb2.DatasetFacts) -> DatasetFacts:
    return DatasetFacts(
        train_samples=message.train_samples,
        heldout_samples=message.heldout_samples,
        input_shape=tuple(message.input_shape),
        classes=message.classes,
        fingerprint=message.fingerprint,
    )
