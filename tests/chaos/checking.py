"""What must hold after chaos."""

from collections import Counter
from collections.abc import Mapping

from shoal.core.job import Phase
from shoal.sdk import JobView
from tests.chaos.conductor import Report


def problems(report: Report, expected: Mapping[str, JobView]) -> list[str]:
    """In words; none if all is right."""
    found = [f"this fault did not happen: {one.fault}" for one in report.happened if not one.proof]
    for ran in report.ran:
        found += [f"job {ran.job.job_id}: {what}" for what in differences(ran.job, expected[ran.kind])]
    known = Counter(job.job_id for job in report.listed)
    acknowledged = Counter(ran.job.job_id for ran in report.ran)
    if known != acknowledged or len(acknowledged) != len(report.ran):
        found.append(f"acknowledged, one for each key, were {sorted(acknowledged)}; there are {sorted(known)}")
    found += [f"{name}, and nobody had killed it" for name in report.ended_by_themselves]
    found += [f"a log tells of an error that nobody caught: {line}" for line in report.tracebacks]
    return found


def differences(job: JobView, expected: JobView) -> list[str]:
    """Between a job's results and those of the same one, undisturbed."""
    if job.phase is not Phase.SUCCEEDED or job.results is None or expected.results is None:
        return [f"it is {job.phase}: {job.message}; {job.results and job.results.errors}"]
    pairs = {
        "sha256": (job.results.weights_sha256, expected.results.weights_sha256),
        "samples": (job.results.samples, expected.results.samples),
        "steps": (job.results.steps, expected.results.steps),
        "losses": (job.losses, expected.losses),
        "number of losses": (len(job.losses), expected.results.steps),
        "evaluations": (job.evaluations, expected.evaluations),
        "times that it ended": (sum(event.phase is Phase.SUCCEEDED for event in job.events), 1),
    }
    return [f"{name}: {_shown(seen)} instead of {_shown(due)}" for name, (seen, due) in pairs.items() if seen != due]


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) < 100 else f"{text[:100]}..."
