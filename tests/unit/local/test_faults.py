import pytest

from shoal.core.errors import InvalidInput, NotFound
from shoal.local.faults import Fault, FaultKind, FaultPlan, FaultRun


class Recorder:
    """A cluster that only writes down what is done to it. `dead` names workers that do not run any more."""

    def __init__(self, *dead: str) -> None:
        self.done: list[str] = []
        self._dead = dead

    def kill_worker(self, name: str) -> None:
        self._note("kill", name)

    def freeze_worker(self, name: str) -> None:
        self._note("freeze", name)

    def thaw_worker(self, name: str) -> None:
        self._note("thaw", name)

    def kill_server(self, name: str) -> None:
        self._note("kill server", name)

    def restart_server(self, name: str, *, wait: bool = True) -> None:
        self._note("restart server", name)

    def freeze_server(self, name: str) -> None:
        self._note("freeze server", name)

    def thaw_server(self, name: str) -> None:
        self._note("thaw server", name)

    def add_worker(self, *, wait: bool = True) -> str:
        self.done.append("add")
        return "worker-9"

    def _note(self, what: str, name: str) -> None:
        if name in self._dead:
            raise NotFound(f"{name} does not run any more")
        self.done.append(f"{what} {name}")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("kill worker-1 at step 40", Fault(kind=FaultKind.KILL, worker=1, at_step=40)),
        ("  Kill  worker-12 at step 0 ", Fault(kind=FaultKind.KILL, worker=12, at_step=0)),
        ("freeze worker-2 at step 60", Fault(kind=FaultKind.FREEZE, worker=2, at_step=60)),
        ("freeze worker-2 at step 60 for 5 s", Fault(kind=FaultKind.FREEZE, worker=2, at_step=60, for_seconds=5)),
        ("freeze worker-2 at step 60 for 0.5s", Fault(kind=FaultKind.FREEZE, worker=2, at_step=60, for_seconds=0.5)),
        ("kill ps-2 at step 40", Fault(kind=FaultKind.KILL, server=2, at_step=40)),
        ("freeze ps-1 at step 60 for 5 s", Fault(kind=FaultKind.FREEZE, server=1, at_step=60, for_seconds=5)),
        ("add worker at step 20", Fault(kind=FaultKind.ADD, at_step=20)),
    ],
)
def test_a_fault_is_read_from_text_and_reads_back(text, fault):
    assert Fault.parse(text) == fault
    assert Fault.parse(str(fault)) == fault


@pytest.mark.parametrize(
    "text",
    [
        "",
        "kill",
        "kill worker at step 3",
        "kill worker-0 at step 3",
        "kill ps-0 at step 3",
        "kill ps at step 3",
        "kill worker-1 at step",
        "kill worker-1 at step -1",
        "kill worker-1 at step 3 for 5 s",
        "add worker-1 at step 3",
        "add worker at step 3 for 5 s",
        "maim worker-1 at step 3",
    ],
)
def test_text_that_is_no_fault_is_answered_with_the_grammar(text):
    with pytest.raises(InvalidInput, match="kill worker-N at step S") as caught:
        Fault.parse(text)
    assert "\n" not in str(caught.value)


def test_the_plan_in_code_is_the_plan_in_text():
    built = FaultPlan().kill_worker(1, at_step=40).freeze_worker(2, at_step=60, for_seconds=5).add_worker(at_step=20)
    built = built.kill_server(1, at_step=70).freeze_server(2, at_step=80)
    texts = [
        "kill worker-1 at step 40",
        "freeze worker-2 at step 60 for 5 s",
        "add worker at step 20",
        "kill ps-1 at step 70",
        "freeze ps-2 at step 80",
    ]
    assert FaultPlan.parse(texts) == built


def test_a_worker_that_will_not_exist_is_refused_but_one_that_is_added_is_not():
    plan = FaultPlan().kill_worker(3, at_step=40)
    with pytest.raises(InvalidInput, match="the last one is worker-2"):
        plan.check(workers=2, shards=1)
    plan.add_worker(at_step=20).check(workers=2, shards=1)


def test_a_server_that_will_not_exist_is_refused():
    plan = FaultPlan().kill_server(3, at_step=40)
    with pytest.raises(InvalidInput, match="there will be no ps-3; the last one is ps-2"):
        plan.check(workers=9, shards=2)
    plan.check(workers=1, shards=3)


def test_each_fault_is_done_once_when_its_step_is_reached_and_counted():
    cluster = Recorder()
    run = FaultRun(FaultPlan().kill_worker(1, at_step=40).add_worker(at_step=20), cluster)
    assert run.observe(step=19, ended=False) == ()
    (added,) = run.observe(step=25, ended=False)
    assert (added.fault.kind, added.happened_at_step) == (FaultKind.ADD, 25)
    run.observe(step=40, ended=False)
    run.observe(step=41, ended=False)
    assert cluster.done == ["add", "kill worker-1"]
    assert [report.happened_at_step for report in run.reports()] == [40, 25]


def test_a_fault_of_a_job_that_ended_before_did_not_happen():
    cluster = Recorder()
    run = FaultRun(FaultPlan().kill_worker(1, at_step=40), cluster)
    run.observe(step=39, ended=False)
    run.observe(step=50, ended=True)
    (report,) = run.reports()
    assert not report.happened
    assert report.why == "the job had ended before"
    assert cluster.done == []


def test_killing_the_dead_did_not_happen():
    run = FaultRun(FaultPlan().kill_worker(1, at_step=1), Recorder("worker-1"))
    (report,) = run.observe(step=1, ended=False)
    assert not report.happened
    assert "does not run" in report.why


def test_a_killed_server_starts_again_at_once():
    cluster = Recorder()
    FaultRun(FaultPlan().kill_server(2, at_step=1), cluster).observe(step=1, ended=False)
    assert cluster.done == ["kill server ps-2", "restart server ps-2"]


def test_a_frozen_server_thaws_after_its_time():
    cluster = Recorder()
    run = FaultRun(FaultPlan().freeze_server(1, at_step=1, for_seconds=0.01), cluster)
    run.observe(step=1, ended=False)
    for timer in run._thaws:
        timer.join(10)
    assert cluster.done == ["freeze server ps-1", "thaw server ps-1"]


def test_a_frozen_worker_thaws_after_its_time():
    cluster = Recorder()
    run = FaultRun(FaultPlan().freeze_worker(1, at_step=1, for_seconds=0.01), cluster)
    run.observe(step=1, ended=False)
    for timer in run._thaws:
        timer.join(10)
    assert cluster.done == ["freeze worker-1", "thaw worker-1"]
