import json
import subprocess
import sys

CODE = """
from shoal.process.logs import configure_logs, get_logger
configure_logs(log_format={form!r}, level="info", role="worker", worker_id="worker-1")
get_logger(job_id="job-1").info("unit_done", step=3)
get_logger().debug("not_shown")
"""


def logged(form: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(form=form)], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "", "logs go to stderr"
    return done.stderr.splitlines()


def test_a_machines_line_is_one_json_object_with_all_ids():
    (line,) = logged("json")
    document = json.loads(line)
    del document["timestamp"]
    assert document == {
        "event": "unit_done",
        "level": "info",
        "role": "worker",
        "worker_id": "worker-1",
        "job_id": "job-1",
        "step": 3,
    }


def test_a_persons_line_has_the_same_fields():
    (line,) = logged("console")
    for part in ("unit_done", "worker_id=worker-1", "job_id=job-1", "step=3"):
        assert part in line
