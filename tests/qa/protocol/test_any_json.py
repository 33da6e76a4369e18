"""Whatever JSON arrives, and whatever the OpenAPI description allows: never a 5xx, always the contract's error form."""

import contextlib
import json
import math

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from tests.qa.live_server import assert_refusal, small_photo

# Invalid on purpose, in at least one way; a few valid values make the deeper checks reachable.
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(st.characters(codec=None, exclude_categories=()), max_size=30)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
ALMOST = st.tuples(
    st.just(small_photo()) | VALUES,
    st.sampled_from(["x", "", "日落"]) | VALUES,
    st.sampled_from([256, 512, 256.0]) | VALUES,
    st.integers(0, 40) | VALUES,
    st.integers(0, 30) | VALUES,
    st.sampled_from([10, 1000]) | VALUES,
    st.floats(0, 25) | VALUES,
).map(list)
bounded = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@bounded
@given(data=ALMOST | st.lists(VALUES, max_size=12) | VALUES, fn_index=st.none() | st.just(0) | VALUES)
def test_any_positional_body_is_answered_or_refused(server, data, fn_index):
    body = json.dumps({"data": data, "fn_index": fn_index})
    answer = server.session.post(f"{server.url}/api/predict/", data=body.encode("utf-8", "surrogatepass"), timeout=60)
    if answer.status_code != 200:
        assert_refusal(answer)
    else:
        path, summary, seconds = answer.json()["data"]
        assert path.endswith(".mp4")
        assert summary
        assert math.isfinite(float(seconds[:-1]))


@bounded
@given(body=st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")))
@pytest.mark.parametrize("path", ["/api/predict/", "/v1/videos", "/v1/videos/extensions", "/v1/videos/x/remix"])
def test_any_bytes_as_a_body_are_refused(server, path, body):
    assert_refusal(server.session.post(f"{server.url}{path}", data=body, timeout=60))


FIELDS = (
    "prompt",
    "seconds",
    "size",
    "num_frames",
    "fps",
    "steps",
    "guidance_scale",
    "seed",
    "preset",
    "fit",
    "model",
    "x",
)


@bounded
@given(fields=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6))
def test_any_named_body_is_queued_or_refused(server, fields):
    body = {"prompt": "x", "size": "256x256", "num_frames": 8, "steps": 10} | fields
    body["input_reference"] = {"image_url": small_photo()}
    text = json.dumps(body).encode("utf-8", "surrogatepass")
    answer = server.session.post(f"{server.url}/v1/videos", data=text, timeout=60)
    if answer.status_code == 200:
        assert answer.json()["object"] == "video"
    elif answer.status_code == 503:
        assert answer.json()["error"]["code"] == "queue_full"
        assert answer.headers["retry-after"]
    else:
        assert_refusal(answer)


CHECKS = [
    schemathesis.checks.not_a_server_error,
    schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_schema_conformance,
]


def test_the_openapi_description_is_kept(server):
    """Each operation, with requests that its description allows and with some that it does not."""
    description = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [found.ok() for found in description.get_all_operations()]
    assert len(operations) >= 15
    for operation in operations:
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            keeps_its_description(operation, mode)


def keeps_its_description(operation, mode):
    @settings(max_examples=5, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case):
        answer = case.call(timeout=60)
        if answer.status_code != 503:  # a full queue is an answer, too
            case.validate_response(answer, checks=CHECKS)

    with contextlib.suppress(Unsatisfiable):  # an operation without parameters has no invalid requests
        check()


def test_the_server_is_well_after_all_that(healthy):
    assert "unexpected error" not in healthy.log
