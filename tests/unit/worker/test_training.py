"""What a trainer refuses before it has attached to anything."""

import pytest
import torch

from shoal.core.errors import TrainingFailed
from shoal.core.job import Grant
from shoal.worker.control import Assignment
from shoal.worker.trainer.app import Training
from tests.shards import spec_of


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: its absence cannot be seen here")
def test_a_job_for_a_gpu_ends_in_one_line_where_torch_sees_none() -> None:
    spec_json = spec_of(resources={"gpu": True}).model_dump_json()
    grant = Grant(job_id="job", attempt=1, revision=1, spec_json=spec_json, first_rank=0, last_rank=4, shards=())
    assignment = Assignment(grant=grant, worker_id="worker", incarnation="1")
    with pytest.raises(TrainingFailed, match="torch on this worker sees no GPU"):
        Training(assignment, roots=(), take_ranks=lambda: range(4))
