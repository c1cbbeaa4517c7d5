"""schemathesis against the OpenAPI schema of /v1/hybrid, in front of a real scheduler: right or wrong, what it sends
is answered as the schema says."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings

from tests.unit.test_serving_status import OPS, Engine, application

SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", application(Engine()), headers=dict(OPS))


@SCHEMA.parametrize()
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_answer_is_one_the_schema_names(case: Any) -> None:
    case.call_and_validate(headers=dict(OPS))
