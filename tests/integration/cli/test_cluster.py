"""`shoal up` to `shoal down`, and everything that is asked of a cluster in between."""

import json
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from shoal.sdk.contexts import Context, ContextFile
from tests.integration.cli.left import TAG, new_tag, none_left
from tests.integration.cli.test_run import SPEC
from tests.ports import free_port
from tests.unit.cli.shell import Done, shoal

pytestmark = pytest.mark.timeout(180)


class Session:
    """A user with a home of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tag = new_tag()

    def __call__(self, *arguments: str | Path) -> Done:
        contexts = self.folder / "config" / "shoal" / "contexts.yaml"
        variables = {"XDG_STATE_HOME": str(self.folder / "state"), "SHOAL_CONTEXTS": str(contexts), TAG: self.tag}
        return shoal(*arguments, cwd=self.folder, timeout=120, **variables)

    def ask(self, *arguments: str | Path) -> Any:
        done = self(*arguments, "-o", "json")
        assert done.code == 0, done
        return json.loads(done.out)

    def spec(self, name: str, **training: Any) -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**SPEC, "name": name, "training": {**SPEC["training"], **training}}))
        return path


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    made = Session(tmp_path_factory.mktemp("session"))
    up = made("up", "--workers", "1", "--shards", "1", "--port", str(free_port("127.0.0.1")))
    assert up.code == 0, up
    yield made
    made("down")
    assert none_left(made.tag)


def test_the_cluster_outlives_the_command_and_is_found_again(session):
    status = session.ask("status")
    assert status["answers"]
    assert [process["name"] for process in status["processes"]] == ["master", "ps-1", "worker-1"]
    assert all(process["running"] for process in status["processes"])
    assert [worker["worker_id"] for worker in session.ask("workers")] == ["worker-1"]
    assert [server["server_id"] for server in session.ask("ps")] == ["ps-1"]


def test_a_second_cluster_is_refused(session):
    session("up", "--port", "0").fails_with(2, "runs already", "shoal down")


def test_a_job_from_submit_to_a_model_on_disk(session):
    job_id = session.ask("submit", session.spec("whole", epochs=5), "--idempotency-key", "once")["job_id"]
    again = session.ask("submit", session.folder / "whole.yaml", "--idempotency-key", "once")
    assert again == {"job_id": job_id, "created": False}
    ended = session.ask("wait", job_id, "--timeout", "90")
    assert ended["phase"] == "SUCCEEDED"
    assert session("watch", job_id).code == 0
    assert session.ask("get", job_id)["results"] == ended["results"]
    described = session.ask("describe", job_id)
    assert [event["phase"] for event in described["events"]][-1] == "SUCCEEDED"
    assert described["spec"]["training"]["epochs"] == 5
    assert job_id in [job["job_id"] for job in session.ask("list", "--phase", "succeeded")]
    saved = session.ask("download", job_id, "model")
    assert saved["weights_sha256"] == ended["results"]["weights_sha256"]
    assert session.ask("evaluate", "model")["accuracy"] == ended["results"]["accuracy"]
    assert session("logs", job_id).code == 0
    assert session("cancel", job_id).out == f"{job_id} SUCCEEDED\n"


def test_a_job_is_cancelled_and_those_who_wait_learn_it(session):
    job_id = session("submit", session.spec("endless", epochs=100_000)).out.strip()
    session("wait", job_id, "--timeout", "0.5").fails_with(124, job_id)
    session("download", job_id, "nowhere").fails_with(101, job_id)
    assert session("cancel", job_id).out == f"{job_id} CANCELLED\n"
    assert session("wait", job_id).code == 103


def test_what_is_not_there_has_its_own_code(session):
    for command in (("get", "nothing"), ("watch", "nothing"), ("cancel", "nothing"), ("logs", "nothing")):
        session(*command).fails_with(102, "nothing")
    session("download", "nothing", "nowhere").fails_with(102, "nothing")


def test_the_master_refuses_what_only_it_can_know(session):
    done = session("submit", session.spec("wide"), "--idempotency-key", "once")
    done.fails_with(2, "once")


def test_the_cluster_is_the_current_context_and_an_old_one_is_so_again_behind_it(tmp_path):
    user = Session(tmp_path)
    file = ContextFile(tmp_path / "config" / "shoal" / "contexts.yaml")
    file.store(Context(name="ml/shoal", address=f"127.0.0.1:{free_port()}", command="shoal connect -n ml"))
    user("list").fails_with(1, "context 'ml/shoal', which needs 'shoal connect -n ml' to run")
    up = user("up", "--workers", "0", "--shards", "1", "--port", "0")
    assert up.code == 0, up
    assert [context["name"] for context in user.ask("contexts", "list")] == ["local", "ml/shoal"]
    assert user.ask("list") == []
    user("--context", "ml/shoal", "list").fails_with(1, "ml/shoal")
    assert user.ask("contexts", "use", "ml/shoal") == {"current": "ml/shoal"}
    assert user.ask("list", "--context", "local") == []
    assert user("down").code == 0
    assert [context["name"] for context in user.ask("contexts", "list")] == ["ml/shoal"]
    assert none_left(user.tag)


def test_a_damaged_contexts_file_is_told_before_a_cluster_starts(tmp_path):
    user = Session(tmp_path)
    (tmp_path / "config" / "shoal").mkdir(parents=True)
    (tmp_path / "config" / "shoal" / "contexts.yaml").write_text("contexts: [")
    user("up", "--port", "0").fails_with(1, "contexts.yaml")
    user("status").fails_with(102, "no cluster")
    assert none_left(user.tag)


def test_a_lost_worker_shows_and_down_leaves_nothing(tmp_path):
    user = Session(tmp_path)
    started = user.ask("up", "--workers", "2", "--shards", "1", "--port", "0")
    worker = next(process for process in started["processes"] if process["name"] == "worker-2")
    psutil.Process(worker["pid"]).send_signal(signal.SIGKILL)
    psutil.wait_procs([psutil.Process(worker["pid"])] if psutil.pid_exists(worker["pid"]) else [], timeout=10)
    status = user("status", "-o", "json")
    assert status.code == 1
    assert [process["name"] for process in json.loads(status.out)["processes"] if not process["running"]] == [
        "worker-2"
    ]
    assert user("down").out.endswith("none left\n")
    assert none_left(user.tag)
    user("status").fails_with(102, "no cluster")
