"""The published JSON schema of the job spec, for editors and other tools."""

import json
from typing import Any

from shoal.jobspec.spec import JobSpec


def schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of what users write."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **JobSpec.model_json_schema()}


def schema_text() -> str:
    """The contents of `docs/job.schema.json`."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"
