"""What other people's programs import. A name goes only with a line in CHANGELOG.md."""

import inspect

import shoal.local
import shoal.sdk

SDK = [
    "Client",
    "Evaluation",
    "JobView",
    "LogLine",
    "ParameterServerView",
    "SavedModel",
    "SnapshotFileView",
    "SnapshotView",
    "Submitted",
    "WorkerShare",
    "WorkerView",
]
CLIENT = [
    "cancel",
    "close",
    "download",
    "get",
    "list",
    "logs",
    "parameter_servers",
    "pause",
    "reach",
    "resume",
    "snapshots",
    "submit",
    "validate",
    "wait",
    "watch",
    "workers",
]
LOCAL = ["Cluster", "Fault", "FaultPlan", "FaultReport"]
CLUSTER = [
    "add_worker",
    "address",
    "client",
    "freeze_server",
    "freeze_worker",
    "keep_folder",
    "kill_master",
    "kill_server",
    "kill_worker",
    "log",
    "member",
    "members",
    "restart_master",
    "restart_server",
    "shards",
    "start",
    "stop",
    "thaw_server",
    "thaw_worker",
    "workers",
]


def public(cls: type) -> list[str]:
    return sorted(name for name in vars(cls) if not name.startswith("_"))


def test_the_sdks_names():
    assert shoal.sdk.__all__ == SDK
    assert public(shoal.sdk.Client) == CLIENT


def test_the_local_clusters_names():
    assert shoal.local.__all__ == LOCAL
    assert public(shoal.local.Cluster) == CLUSTER


def test_public_classes_explain_themselves():
    for module in (shoal.sdk, shoal.local):
        for name in module.__all__:
            assert inspect.getdoc(getattr(module, name)), name


def test_answers_cannot_be_changed():
    for name in SDK:
        noun = getattr(shoal.sdk, name)
        if noun is not shoal.sdk.Client:
            assert noun.__dataclass_params__.frozen, name
