"""`python -m shoal.jobspec` prints the job spec's JSON schema: `docs/job.schema.json` is its output."""

import sys

from shoal.jobspec.schema import schema_text

sys.stdout.write(schema_text())
