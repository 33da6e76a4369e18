"""Rows that no code of ours wrote: one is set aside with a sentence, and everything else goes on."""

import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest
from PIL import Image

from i2v.engine.fake import FakeEngine
from i2v.errors import Conflict, NotFound
from i2v.jobs.job import Job
from i2v.jobs.queue import JobQueue
from i2v.jobs.rows import SET_ASIDE, STATUSES
from tests.jobs.job_doubles import SMALL, Gate, MakeQueue, final

# What is written into the row of one job; the columns are those of `i2v_jobs`.
ROWS = {
    "request is no JSON": "request = '{'",
    "request is 100,000 brackets": f"request = '{'[' * 100_000}'",
    "request is of another kind": "request = '{\"prompt\": 7}'",
    "request is a number": "request = 7",
    "request is bytes": "request = x'ff00ff'",
    "request is no UTF-8": "request = cast(x'7b22ff' as text)",
    "request holds a huge number": 'request = \'{"prompt": "x", "seed": ' + "9" * 5000 + "}'",
    "prompt is bytes": "prompt = x'ff'",
    "prompt is no UTF-8": "prompt = cast(x'ff' as text)",
    "unknown state": "status = 'gone'",
    "empty state": "status = ''",
    "state is bytes": "status = x'ff'",
    "unknown door": "door = 'window'",
    "created at a text": "created_at = 'yesterday'",
    "created in the year 10^300": "created_at = 1e300",
    "created at infinity": "created_at = 9e999",
    "started at a text": "started_at = 'soon'",
    "ended at a text": "completed_at = 'late'",
    "attempt is a text": "attempt = 'second'",
    "attempt is a fraction": "attempt = 0.5",
    "step is a text": "step = 'many'",
    "slot is a text": "slot = 'left'",
    "boot is bytes": "boot_id = x'00ff'",
    "error code is bytes": "error_code = x'00'",
    "error message is bytes": "error_message = x'00'",
    "file is bytes": "file = x'ff'",
    "file leads out": "file = '../../etc/passwd'",
    "bytes is a text": "bytes = 'much'",
    "result is no JSON": "result = '{'",
    "result is a list": "result = '[]'",
    "result is a text": "result = '\"x\"'",
    "result lacks a part": 'result = \'{"notes": [], "warnings": []}\'',
    "extends is bytes": "extends = x'00'",
    "id is none of ours": "id = 'x'",
    "id is no UTF-8": "id = cast(x'ff' as text)",
}
STATES = ("queued", "in_progress", "completed", "failed")


def change(outputs: Path, words: str, *, where: str = "", table: str = "i2v_jobs") -> None:
    with closing(sqlite3.connect(outputs / "jobs.sqlite3", isolation_level=None)) as other:
        other.execute("PRAGMA ignore_check_constraints = ON")
        other.execute(f"UPDATE {table} SET {words} {where}")


def states(outputs: Path) -> list[object]:
    with closing(sqlite3.connect(outputs / "jobs.sqlite3")) as other:
        return [row[0] for row in other.execute("SELECT status FROM i2v_jobs ORDER BY seq")]


def ask_everything(queue: JobQueue, job: Job) -> None:
    """Whatever a caller may ask about it is answered, or refused in words of ours."""
    for ask in (queue.get, queue.input_image, queue.cancel, queue.delete):
        with suppress(NotFound, Conflict):
            ask(job.id)


@pytest.mark.slow
@pytest.mark.fault("F19", "one row that cannot be read, in each of 35 ways", before="a traceback, and no start")
def test_one_unreadable_row_costs_no_start(
    make_queue: MakeQueue,
    outputs: Path,
    dot: Image.Image,
    caplog: pytest.LogCaptureFixture,
    record_property: Callable[[str, str], None],
) -> None:
    set_aside = 0
    cases = [(name, state) for number, name in enumerate(ROWS) for state in (STATES[number % 4], STATES[number % 3])]
    for name, state in cases:
        try:
            set_aside += one_bad_row(make_queue, outputs, dot, caplog, state, ROWS[name])
        except BaseException as error:
            error.add_note(f"{name}, {state}")
            raise
    record_property(
        "after", f"{len(cases)} starts, {set_aside} with a row set aside, no traceback; other jobs run and show"
    )


def one_bad_row(
    make_queue: MakeQueue, outputs: Path, dot: Image.Image, caplog: pytest.LogCaptureFixture, state: str, words: str
) -> bool:
    """Start on a table with one such row among good ones. Whether it was set aside: some values do not matter."""
    queue = make_queue()
    good, bad = (final(queue, queue.submit(SMALL, dot, door="videos")) for _ in range(2))
    queue.stop()
    change(outputs, f"status = '{state}'", where=f"WHERE id = '{bad.id}'")
    change(outputs, words, where=f"WHERE id = '{bad.id}'")
    caplog.clear()
    queue = make_queue()
    after = final(queue, queue.submit(SMALL, dot, door="videos"))
    assert after.status == "completed"
    listed = {job.id for job in queue.list(limit=100)}
    assert {good.id, after.id} <= listed
    ask_everything(queue, bad)
    assert set(queue.counts()) <= set(STATUSES)
    assert not [record for record in caplog.records if record.exc_info]
    set_aside = SET_ASIDE in states(outputs)
    if set_aside:
        assert bad.id not in listed
        assert "is set aside: its row stays in the table" in caplog.text
    queue.stop()
    with closing(sqlite3.connect(outputs / "jobs.sqlite3", isolation_level=None)) as other:
        other.execute("DELETE FROM i2v_jobs")
    return set_aside


def test_an_unreadable_row_in_front_of_the_queue_lets_the_others_run(
    make_queue: MakeQueue, outputs: Path, gate: Gate, dot: Image.Image
) -> None:
    """It becomes unreadable while the server runs."""
    queue = make_queue(FakeEngine(fault=gate))
    first, second, third = (queue.submit(SMALL, dot, door="videos", idempotency_key=f"key {n}") for n in range(3))
    assert gate.reached.wait(60)
    queue._opened().data.store._requests.clear()
    change(outputs, "request = '{'", where=f"WHERE id = '{second.id}'")
    gate.open()
    assert final(queue, third).status == "completed"
    assert final(queue, first).status == "completed"
    with pytest.raises(NotFound):
        queue.get(second.id)
    again = queue.submit(SMALL, dot, door="videos", idempotency_key="key 1")
    assert again.id != second.id
    assert final(queue, again).status == "completed"


@pytest.mark.parametrize(
    ("words", "table"),
    [
        ("value = 'two' WHERE key = 'schema'", "i2v_meta"),
        ("value = x'ff' WHERE key = 'schema'", "i2v_meta"),
        ("value = '' WHERE key = 'schema'", "i2v_meta"),
        ("value = 'many' WHERE key = 'starts'", "i2v_meta"),
        ("value = x'00' WHERE key = 'starts_after_death'", "i2v_meta"),
        ("url = x'00'", "i2v_webhooks"),
        ("status = 7", "i2v_webhooks"),
        ("ended_at = 'late'", "i2v_webhooks"),
    ],
)
def test_other_values_that_cannot_be_read_cost_no_start(
    make_queue: MakeQueue, outputs: Path, dot: Image.Image, words: str, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    queue = make_queue()
    done = final(queue, queue.submit(SMALL, dot, door="videos", webhook="https://example.com/"))
    queue.stop()
    change(outputs, words, table=table)
    again = make_queue()
    assert again.get(done.id) == done
    assert list(again.pending_webhooks()) == [] or table != "i2v_webhooks"
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("words", ["png = x'00'", "png = 'a text'", "png = x''", "png = cast(x'89504e47' as blob)"])
def test_a_stored_photo_that_is_none_fails_its_job_alone(
    make_queue: MakeQueue, outputs: Path, gate: Gate, dot: Image.Image, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    queue = make_queue(FakeEngine(fault=gate))
    first, second = (queue.submit(SMALL, dot, door="videos") for _ in range(2))
    assert gate.reached.wait(60)
    change(outputs, words, table="i2v_inputs", where=f"WHERE job_id = '{second.id}'")
    gate.open()
    ended = final(queue, second)
    assert (ended.status, ended.error_code) == ("failed", "generation_failed")
    assert "photo" in str(ended.error_message)
    with pytest.raises(NotFound, match="photo"):
        queue.input_image(second.id)
    assert final(queue, first).status == "completed"
    assert not [record for record in caplog.records if record.exc_info]
