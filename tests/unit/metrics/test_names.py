"""Every role's metrics keep the rules of naming, and series that belong to something go with it."""

import pytest
from prometheus_client import CollectorRegistry

from shoal.metrics.master import MasterMetrics
from shoal.metrics.parameter_server import ParameterServerMetrics
from shoal.metrics.worker import WorkerMetrics


@pytest.mark.parametrize("role", [MasterMetrics, WorkerMetrics, ParameterServerMetrics])
def test_names_have_the_prefix_base_units_and_help(role):
    registry = CollectorRegistry()
    role(registry)
    families = list(registry.collect())
    assert families
    for family in families:
        assert family.name.startswith("shoal_")
        assert family.documentation.endswith(".")
        assert not family.name.endswith(("_milliseconds", "_ms", "_percent", "_mib", "_kb"))


@pytest.mark.parametrize("role", [MasterMetrics, WorkerMetrics, ParameterServerMetrics])
def test_two_of_a_role_live_in_one_process(role):
    role(CollectorRegistry())
    role(CollectorRegistry())


def test_a_workers_and_a_jobs_series_go_with_them():
    registry = CollectorRegistry()
    metrics = MasterMetrics(registry)
    metrics.worker_cpu.labels(worker="w").set(0.5)
    metrics.job_step.labels(job_id="j").set(5)
    metrics.forget_worker("w")
    metrics.forget_job("j")
    metrics.forget_job("never-seen")
    labels = [sample.labels for family in registry.collect() for sample in family.samples]
    assert not any("worker" in label or "job_id" in label for label in labels)


def test_a_shares_series_go_with_it():
    registry = CollectorRegistry()
    metrics = ParameterServerMetrics(registry)
    metrics.version.labels(job_id="j").set(5)
    metrics.forget_job("j")
    assert registry.get_sample_value("shoal_ps_job_version", {"job_id": "j"}) is None
