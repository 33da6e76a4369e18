"""The log: one record a line whatever callers send, with the job's id."""

import json
import logging
import sys

import pytest

from i2v.server.logs import JSONLines, TextLines

NASTY = "sunset\r\n2026-01-01 ERROR forged\x1b[31m\x00\u2028\u202e end"


def record(message, *args, **extra):
    made = logging.LogRecord("i2v.test", logging.INFO, __file__, 1, message, args, None)
    made.__dict__.update(extra)
    return made


@pytest.mark.parametrize("formatter", [TextLines(), JSONLines()])
def test_a_line_break_in_a_prompt_cannot_forge_a_record(formatter):
    line = formatter.format(record("prompt %s", NASTY, job="video_1\n2"))
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line
    assert "\u202e" not in line


def test_a_text_record_carries_job_and_request():
    line = TextLines().format(record("accepted", job="video_1", request="req_2"))
    assert line.endswith("INFO i2v.test accepted job=video_1 request=req_2")


def test_a_json_record_is_one_object_with_job_and_request():
    fields = json.loads(JSONLines().format(record("accepted", job="video_1", request="req_2")))
    assert fields["message"] == "accepted"
    assert (fields["job"], fields["request"], fields["level"]) == ("video_1", "req_2", "info")


@pytest.mark.parametrize("formatter", [TextLines(), JSONLines()])
def test_a_traceback_stays_on_its_record(formatter):
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        made = record("failed", exc_info=sys.exc_info())
    line = formatter.format(made)
    assert "boom" in line
    assert len(line.splitlines()) == 1
