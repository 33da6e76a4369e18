"""What the doors of the server are promised by `JobQueue`."""

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from i2v.engine.fake import FakeEngine
from i2v.errors import Conflict, DoesNotFit, NotFound, NotReady, QueueFull, StorageFull, TooManyJobs, Unavailable
from i2v.jobs import admission
from i2v.jobs.job import Job, Status
from i2v.jobs.photo import encode_png
from i2v.jobs.queue import JobQueue
from i2v.mutex import GpuMutex
from i2v.notes import Note
from i2v.request import GenerateRequest
from tests.jobs.job_doubles import DEADLINE_S, SMALL, Gate, MakeQueue, final, until


@pytest.fixture
def held(make_queue: MakeQueue, gate: Gate, dot: Image.Image) -> "Held":
    """A queue whose engine holds one running job at its second step."""
    queue = make_queue(FakeEngine(fault=gate), settings={"queue": {"length": 4}})
    running = queue.submit(SMALL, dot, door="cli")
    assert gate.reached.wait(DEADLINE_S)
    return Held(queue, gate, running)


class Held:
    def __init__(self, queue: JobQueue, gate: Gate, running: Job) -> None:
        self.queue, self.gate, self.running = queue, gate, running


def test_a_job_runs_and_its_file_is_there(make_queue: MakeQueue, dot: Image.Image, outputs: Path) -> None:
    queue = make_queue()
    job = queue.submit(SMALL, dot, door="predict")
    assert job.status == "queued"
    assert job.request.seed is not None
    done = final(queue, job)
    assert (done.status, done.attempt, done.progress) == ("completed", 1, 100)
    assert done.result is not None
    path = queue.video_path(done)
    assert path.parent == outputs
    assert path.stat().st_size == done.result.bytes
    assert done.result.seed == job.request.seed
    assert {"denoise", "decode", "write"} <= set(done.result.stage_seconds)


def test_jobs_run_in_the_order_of_arrival(held: Held, dot: Image.Image) -> None:
    jobs = [held.queue.submit(SMALL, dot, door="cli") for _ in range(3)]
    assert [held.queue.get(job.id).position for job in jobs] == [0, 1, 2]
    held.gate.open()
    done = [final(held.queue, job) for job in jobs]
    started = sorted(done, key=lambda job: job.started_at or job.created_at)
    assert [job.id for job in started] == [job.id for job in jobs]


def test_64_callers_at_once_fill_8_places_and_the_rest_are_told_when_to_come_again(
    make_queue: MakeQueue, gate: Gate, dot: Image.Image
) -> None:
    queue = make_queue(FakeEngine(fault=gate), settings={"queue": {"length": 8}})
    first = queue.submit(SMALL, dot, door="cli")
    assert gate.reached.wait(DEADLINE_S)
    barrier = threading.Barrier(64)

    def submit(_number: int) -> Job | QueueFull:
        barrier.wait()
        try:
            return queue.submit(SMALL, dot, door="predict")
        except QueueFull as error:
            return error

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(submit, range(64)))
    taken = [answer for answer in answers if isinstance(answer, Job)]
    refused = [answer for answer in answers if isinstance(answer, QueueFull)]
    assert (len(taken), len(refused)) == (8, 56)
    assert queue.queue_length == 8
    assert all(error.retry_after is not None and error.retry_after >= 1 for error in refused)
    order = [job.id for job in queue.list(order="asc", limit=100)]
    gate.open()
    done = [final(queue, job) for job in [first, *taken]]
    assert {job.status for job in done} == {"completed"}
    assert [job.id for job in sorted(done, key=lambda job: job.started_at or job.created_at)] == order


@pytest.mark.slow
def test_64_callers_who_honour_retry_after_all_get_their_video(make_queue: MakeQueue, dot: Image.Image) -> None:
    queue = make_queue(settings={"queue": {"length": 8}})

    def insist(_number: int) -> Job:
        while True:
            try:
                return final(queue, queue.submit(SMALL, dot, door="predict"))
            except QueueFull as error:
                threading.Event().wait((error.retry_after or 0) / 50)  # the clients' seconds pass quicker here

    with ThreadPoolExecutor(64) as pool:
        done = list(pool.map(insist, range(64)))
    assert len({job.id for job in done}) == 64
    assert {job.status for job in done} == {"completed"}


def test_retry_after_follows_the_measured_pace(held: Held, dot: Image.Image) -> None:
    held.queue._pace.record(SMALL, 120.0)
    for _ in range(4):
        held.queue.submit(SMALL, dot, door="cli")
    with pytest.raises(QueueFull) as caught:
        held.queue.submit(SMALL, dot, door="cli")
    assert caught.value.retry_after is not None
    assert 60 < caught.value.retry_after <= 120
    last = held.queue.list(limit=1)[0]
    assert last.position == 3
    assert last.eta_s is not None
    assert 480 < last.eta_s <= 600


def test_32_submits_with_one_key_are_one_job(make_queue: MakeQueue, dot: Image.Image) -> None:
    queue = make_queue()
    barrier = threading.Barrier(32)

    def submit(_number: int) -> Job:
        barrier.wait()
        return queue.submit(SMALL, dot, door="videos", idempotency_key="order 66")

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(submit, range(32)))
    assert len({job.id for job in answers}) == 1
    assert sum(not job.replayed for job in answers) == 1
    assert len({job.request.seed for job in answers}) == 1


def test_a_key_means_the_same_job_however_the_photo_is_packed(
    make_queue: MakeQueue, dot: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counted the packed bytes: a version that packs in another way answered each retry with a conflict."""
    queue = make_queue()
    first = queue.submit(SMALL, dot, door="videos", idempotency_key="k")
    monkeypatch.setattr(admission, "encode_png", lambda picture: encode_png(picture) + b"\0")
    again = queue.submit(SMALL, dot, door="videos", idempotency_key="k")
    assert (again.id, again.replayed) == (first.id, True)


def test_one_key_with_another_prompt_or_photo_is_a_conflict(make_queue: MakeQueue, dot: Image.Image) -> None:
    queue = make_queue()
    queue.submit(SMALL, dot, door="videos", idempotency_key="k")
    with pytest.raises(Conflict):
        queue.submit(SMALL.model_copy(update={"prompt": "else"}), dot, door="videos", idempotency_key="k")
    with pytest.raises(Conflict):
        queue.submit(SMALL, Image.new("RGB", (9, 9)), door="videos", idempotency_key="k")


def test_one_caller_has_a_share_of_the_queue(make_queue: MakeQueue, gate: Gate, dot: Image.Image) -> None:
    queue = make_queue(FakeEngine(fault=gate), settings={"queue": {"length": 9, "per_caller": 1}})
    queue.submit(SMALL, dot, door="videos", caller="a")
    assert gate.reached.wait(DEADLINE_S)
    queue.submit(SMALL, dot, door="videos", caller="a")
    with pytest.raises(TooManyJobs):
        queue.submit(SMALL, dot, door="videos", caller="a")
    queue.submit(SMALL, dot, door="videos", caller="b")
    gate.open()


def test_a_job_this_machine_cannot_hold_is_refused_at_the_door(make_queue: MakeQueue, dot: Image.Image) -> None:
    queue = make_queue(FakeEngine(max_pixels=64 * 64 * 2))
    with pytest.raises(DoesNotFit):
        queue.submit(SMALL, dot, door="cli")
    assert queue.list() == []


def test_no_job_is_taken_when_the_disk_is_nearly_full(make_queue: MakeQueue, dot: Image.Image) -> None:
    free = [10**12]
    queue = make_queue(free_space=lambda _folder: free[0])
    assert queue.storage_ok()
    free[0] = 199 * 10**6
    with pytest.raises(StorageFull):
        queue.submit(SMALL, dot, door="cli")
    assert not queue.storage_ok()
    free[0] = 10**12
    assert final(queue, queue.submit(SMALL, dot, door="cli")).status == "completed"


def test_before_the_engine_is_there_callers_are_told_how_far_it_is(make_queue: MakeQueue, dot: Image.Image) -> None:
    queue = make_queue()
    queue.stop()
    loading = JobQueue(queue._settings)
    loading.start()
    try:
        assert (loading.state, loading.model) == ("loading", None)
        loading.report_loading(Note("asking_hub", {"repo": "some/model"}), 0.25)
        with pytest.raises(NotReady, match=r"not loaded yet: asking the hub for some/model \(25%\)") as caught:
            loading.submit(SMALL, dot, door="cli")
        assert caught.value.retry_after
        loading.fail_loading("the weights are not there")
        assert loading.state == "failed"
        with pytest.raises(NotReady, match="the weights are not there"):
            loading.submit(SMALL, dot, door="cli")
        loading.attach(FakeEngine(), GpuMutex())
        assert loading.state == "ready"
        assert final(loading, loading.submit(SMALL, dot, door="cli")).status == "completed"
    finally:
        loading.stop()


def test_a_cancelled_running_job_stops_within_one_step(held: Held) -> None:
    with ThreadPoolExecutor(1) as pool:
        cancelling = pool.submit(held.queue.cancel, held.running.id)
        until(lambda: held.queue._running.all()[0].cancelled)
        assert not cancelling.done(), "it answers only once the job has stopped"
        held.gate.open()
        job = cancelling.result(DEADLINE_S)
    assert (job.status, job.error_code) == ("cancelled", "cancelled")
    assert job.step == 0 or job.step <= 2
    assert held.queue.cancel(held.running.id) == job, "cancelling twice is the same answer"


def test_a_queued_job_is_cancelled_at_once(held: Held, dot: Image.Image) -> None:
    job = held.queue.submit(SMALL, dot, door="cli")
    assert held.queue.cancel(job.id).status == "cancelled"
    assert held.queue.queue_length == 0
    assert held.queue.get(job.id).attempt == 0


def test_what_is_completed_cannot_be_cancelled(make_queue: MakeQueue, dot: Image.Image) -> None:
    queue = make_queue()
    job = final(queue, queue.submit(SMALL, dot, door="cli"))
    with pytest.raises(Conflict):
        queue.cancel(job.id)
    with pytest.raises(NotFound):
        queue.cancel("video_" + "0" * 24)


@pytest.mark.parametrize(("setting", "end"), [("finish", "completed"), ("cancel", "cancelled")])
def test_a_caller_that_goes_away_frees_its_place(
    make_queue: MakeQueue, gate: Gate, dot: Image.Image, setting: str, end: str
) -> None:
    queue = make_queue(FakeEngine(fault=gate), settings={"predict": {"on_disconnect": setting}})
    running = queue.submit(SMALL, dot, door="predict")
    assert gate.reached.wait(DEADLINE_S)
    waiting = queue.submit(SMALL, dot, door="predict")
    queue.abandon(waiting.id)
    assert queue.get(waiting.id).status == "cancelled"
    queue.abandon(running.id)
    gate.open()
    assert final(queue, running).status == end
    queue.abandon(running.id)  # final by now: nothing happens
    queue.abandon("video_" + "0" * 24)


def test_deleting_ends_a_running_job_and_removes_every_trace(held: Held, dot: Image.Image) -> None:
    with ThreadPoolExecutor(1) as pool:
        deleting = pool.submit(held.queue.delete, held.running.id)
        until(lambda: held.queue._running.all()[0].cancelled)
        held.gate.open()
        deleting.result(DEADLINE_S)
    with pytest.raises(NotFound):
        held.queue.get(held.running.id)
    done = final(held.queue, held.queue.submit(SMALL, dot, door="cli"))
    path = held.queue.video_path(done)
    held.queue.delete(done.id)
    assert not path.exists()
    assert not path.with_suffix(".json").exists()


def test_a_video_that_cannot_be_removed_keeps_its_row_and_says_why(
    make_queue: MakeQueue, dot: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that had become read-only was an unexpected error, 500."""
    queue = make_queue()
    done = final(queue, queue.submit(SMALL, dot, door="cli"))

    def refuse(path: Path, _target: Path) -> None:  # root, as whom tests may run, can write into any folder
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", refuse)
        with pytest.raises(Unavailable, match="cannot be removed: Read-only file system") as refused:
            queue.delete(done.id)
    assert str(queue._folder) not in refused.value.message
    assert queue.get(done.id) == done
    queue.delete(done.id)
    assert queue.list() == []


def test_a_video_whose_file_was_taken_away_is_no_longer_called_completed(
    make_queue: MakeQueue, dot: Image.Image
) -> None:
    queue = make_queue()
    done = final(queue, queue.submit(SMALL, dot, door="cli"))
    path = queue.video_path(done)
    path.unlink()
    path.symlink_to("/etc/passwd")  # not a file of ours either
    with pytest.raises(NotFound):
        queue.video_path(done)
    assert queue.get(done.id).error_code == "video_lost"


def test_waiting_coroutines_get_the_final_job_and_leave_nothing_behind(
    make_queue: MakeQueue, gate: Gate, dot: Image.Image
) -> None:
    queue = make_queue(FakeEngine(fault=gate))

    async def run() -> None:
        job = queue.submit(SMALL, dot, door="cli")
        waits = [asyncio.create_task(queue.wait(job.id)) for _ in range(50)]
        while len(queue._watchers) < 50:
            await asyncio.sleep(0)
        for task in waits[:25]:
            task.cancel()
        await asyncio.gather(*waits[:25], return_exceptions=True)
        assert len(queue._watchers) == 25
        gate.open()
        done = await asyncio.wait_for(asyncio.gather(*waits[25:]), DEADLINE_S)
        assert {job.status for job in done} == {"completed"}

    asyncio.run(run())
    assert len(queue._watchers) == 0


def test_events_begin_with_now_show_the_steps_and_end_with_the_final_state(
    make_queue: MakeQueue, gate: Gate, dot: Image.Image
) -> None:
    queue = make_queue(FakeEngine(fault=gate, step_s=0.01))

    async def run() -> list[Job]:
        job = queue.submit(SMALL, dot, door="cli")
        seen = []
        async for snapshot in queue.events(job.id):
            seen.append(snapshot)
            gate.open()
        return seen

    seen = asyncio.run(run())
    assert seen[-1].status == "completed"
    assert [job.status for job in seen[:-1]].count("completed") == 0
    steps = [job.step for job in seen if job.status == "in_progress"]
    assert steps == sorted(steps)
    assert [job.progress for job in seen] == sorted(job.progress for job in seen)
    assert len(queue._watchers) == 0


def test_a_reader_of_events_may_leave_at_any_time(held: Held) -> None:
    async def run() -> None:
        stream = held.queue.events(held.running.id)
        async for snapshot in stream:
            assert snapshot.status == "in_progress"
            break
        await stream.aclose()  # type: ignore[attr-defined]

    asyncio.run(run())
    assert len(held.queue._watchers) == 0
    held.gate.open()
    assert final(held.queue, held.running).status == "completed"


def test_those_who_wait_in_the_queue_see_their_place_change(held: Held, dot: Image.Image) -> None:
    jobs = [held.queue.submit(SMALL, dot, door="cli") for _ in range(3)]

    async def run() -> list[int | None]:
        places = []
        async for snapshot in held.queue.events(jobs[2].id):
            if not places or places[-1] != snapshot.position:
                places.append(snapshot.position)
            if snapshot.position == 2:
                await asyncio.to_thread(held.queue.cancel, jobs[0].id)
            elif snapshot.position == 1:
                await asyncio.to_thread(held.queue.cancel, jobs[1].id)
            elif snapshot.position == 0:
                held.gate.open()
        return places

    assert asyncio.run(run())[:3] == [2, 1, 0]


def test_a_wait_for_what_is_not_there_or_goes_away_ends(held: Held, dot: Image.Image) -> None:
    waiting = held.queue.submit(SMALL, dot, door="cli")

    async def run() -> None:
        with pytest.raises(NotFound):
            await held.queue.wait("video_" + "0" * 24)
        task = asyncio.create_task(held.queue.wait(waiting.id))
        while not len(held.queue._watchers):
            await asyncio.sleep(0)
        await asyncio.to_thread(held.queue.delete, waiting.id)
        with contextlib.suppress(NotFound):  # it may have seen the cancelled row just before it went
            assert (await asyncio.wait_for(task, DEADLINE_S)).status == "cancelled"

    asyncio.run(run())
    with pytest.raises(TimeoutError):
        held.queue.wait_sync(held.running.id, 0.01)
    held.gate.open()


def test_previews_come_while_a_job_runs(held: Held) -> None:
    first = held.queue.preview(held.running.id)
    assert first is not None
    assert first.shape == (8, 8, 3)
    held.gate.open()
    final(held.queue, held.running)
    assert held.queue.preview(held.running.id) is None


def test_the_photo_is_kept_as_it_came(make_queue: MakeQueue, photo: Image.Image) -> None:
    queue = make_queue()
    job = queue.submit(SMALL, photo, door="cli")
    assert queue.input_image(job.id).tobytes() == photo.tobytes()
    large = queue.submit(SMALL, photo.resize((4000, 100)), door="cli")
    assert queue.input_image(large.id).size == (2560, 64)


def test_two_runs_with_one_seed_store_the_same_video(make_queue: MakeQueue, dot: Image.Image) -> None:
    queue = make_queue()
    request = SMALL.model_copy(update={"seed": 11})
    paths = [queue.video_path(final(queue, queue.submit(request, dot, door="cli"))) for _ in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_averages_are_learnt_and_known_again_after_a_restart(make_queue: MakeQueue, dot: Image.Image) -> None:
    queue = make_queue(FakeEngine(step_s=0.005))
    assert (queue.average_duration, queue.average_seconds(SMALL)) == (0.0, None)
    final(queue, queue.submit(SMALL, dot, door="cli"))
    known = queue.average_seconds(SMALL)
    assert known is not None
    assert known >= 0.02
    queue.stop()
    again = make_queue()
    assert again.average_seconds(SMALL) == pytest.approx(known)
    assert again.average_duration == pytest.approx(known)


def test_listeners_get_each_job_once_however_it_ends(held: Held, dot: Image.Image) -> None:
    heard: list[Job] = []
    held.queue.on_final.append(heard.append)
    waiting = held.queue.submit(SMALL, dot, door="cli")
    cancelled = held.queue.cancel(waiting.id)
    held.gate.open()
    done = final(held.queue, held.running)
    until(lambda: heard == [cancelled, done])


def test_stopping_lets_the_running_job_finish_and_releases_those_who_wait_in_the_queue(
    held: Held, dot: Image.Image
) -> None:
    waiting = held.queue.submit(SMALL, dot, door="cli")
    with ThreadPoolExecutor(2) as pool:
        waiter = pool.submit(held.queue.wait_sync, waiting.id, DEADLINE_S)
        stopping = pool.submit(held.queue.stop, DEADLINE_S)
        with pytest.raises(NotReady):
            waiter.result(DEADLINE_S)
        with pytest.raises(NotReady):
            held.queue.submit(SMALL, dot, door="cli")
        held.gate.open()
        stopping.result(DEADLINE_S)
    with pytest.raises(NotReady):
        held.queue.get(waiting.id)


def test_a_stop_that_cannot_wait_puts_the_running_job_back_without_counting_the_attempt(
    make_queue: MakeQueue, dot: Image.Image
) -> None:
    queue = make_queue(FakeEngine(step_s=0.02))
    job = queue.submit(SMALL.model_copy(update={"steps": 1000}), dot, door="cli")
    until(lambda: queue.get(job.id).step > 0)
    queue.stop(timeout=0.05)
    loading = JobQueue(queue._settings)  # no engine, so that nothing runs
    loading.start()
    found = loading.get(job.id)
    loading.stop()
    assert (found.status, found.attempt) == ("queued", 0)


def test_polling_a_running_job_reads_no_table(held: Held) -> None:
    """Five hundred polls a second must not cost the running job anything."""
    reads = []
    held.queue.get(held.running.id)
    database = held.queue._opened().data.store._database
    original = database.reading
    database.reading = lambda: (reads.append(1), original())[1]  # type: ignore[method-assign]
    for _ in range(500):
        found = held.queue.running(held.running.id)
        assert found is not None
        assert (found.status, found.step) == ("in_progress", 1)
    assert reads == []
    for _ in range(500):
        held.queue.get(held.running.id)
    held.gate.open()
    assert len(reads) <= 2, "at most after a progress row was written in between"


def test_only_a_running_job_is_found_in_memory(held: Held, dot: Image.Image) -> None:
    waiting = held.queue.submit(SMALL, dot, door="cli")
    assert held.queue.running(waiting.id) is None
    assert held.queue.running("video_" + 24 * "0") is None
    held.gate.open()
    final(held.queue, held.running)
    assert held.queue.running(held.running.id) is None


def test_cancel_storms_end_every_job_and_leave_the_queue_working(make_queue: MakeQueue, dot: Image.Image) -> None:
    queue = make_queue(FakeEngine(step_s=0.001), settings={"queue": {"length": 100}})
    jobs = [queue.submit(SMALL, dot, door="cli") for _ in range(40)]

    def cancel(job: Job) -> str:
        try:
            return queue.cancel(job.id).status
        except Conflict:
            return queue.get(job.id).status

    with ThreadPoolExecutor(16) as pool:
        states = list(pool.map(cancel, [job for job in jobs for _ in range(4)]))
    assert set(states) <= {"cancelled", "completed"}
    assert queue.queue_length == 0
    assert final(queue, queue.submit(SMALL, dot, door="cli")).status == "completed"
    assert queue._running.all() == []


@pytest.mark.slow
def test_1000_submits_and_cancels_leave_nothing_behind(make_queue: MakeQueue, gate: Gate, dot: Image.Image) -> None:
    queue = make_queue(FakeEngine(fault=gate))
    running = queue.submit(SMALL, dot, door="cli")
    assert gate.reached.wait(DEADLINE_S)
    threads = set(threading.enumerate())
    for _ in range(1000):
        queue.cancel(queue.submit(SMALL, dot, door="cli").id)
    assert queue.queue_length == 0
    assert set(threading.enumerate()) <= threads
    assert len(queue._watchers) == 0
    gate.open()
    assert final(queue, running).status == "completed"
    assert queue.counts()["cancelled"] == 1000


@pytest.mark.parametrize("ends", ["completed", "cancelled"])
def test_a_job_is_told_to_the_listeners_before_whoever_waits_for_it_and_may_delete_it(
    held: Held, dot: Image.Image, ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waited was woken first; a delete took the row away from under those who were told afterwards."""
    heard: list[tuple[str, str]] = []
    held.queue.on_final.append(lambda job: heard.append((job.id, job.status)))
    videos, gone = held.queue._opened().videos, threading.Event()
    tidy = videos.tidy

    def held_back(status: Status) -> Sequence[str]:
        assert gone.wait(DEADLINE_S)
        return tidy(status)

    monkeypatch.setattr(videos, "tidy", held_back)
    with ThreadPoolExecutor(1) as pool:
        if ends == "cancelled":
            deleted = pool.submit(held.queue.delete, held.running.id)
            until(lambda: any(live.cancelled for live in held.queue._running.all()))
            held.gate.open()
            deleted.result(DEADLINE_S)
        else:
            held.gate.open()
            final(held.queue, held.running)
            held.queue.delete(held.running.id)
    until(lambda: heard == [(held.running.id, ends)])  # the row may be read in the moment before they are told
    gone.set()
    held.queue.stop(DEADLINE_S)
    assert heard == [(held.running.id, ends)]


def test_what_follows_a_job_that_is_gone_by_then_does_no_harm(
    make_queue: MakeQueue, dot: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = make_queue()
    videos = queue._opened().videos
    tidy = videos.tidy

    def once_gone(status: Status) -> Sequence[str]:
        queue.delete(queue.list()[0].id)
        return tidy(status)

    with monkeypatch.context() as patched:
        patched.setattr(videos, "tidy", once_gone)
        queue.submit(SMALL, dot, door="cli")
        until(lambda: queue.list() == [])
    assert final(queue, queue.submit(SMALL, dot, door="cli")).status == "completed"


def test_the_engine_is_given_the_photo_and_the_request_that_were_submitted(
    make_queue: MakeQueue, gate: Gate, dot: Image.Image
) -> None:
    """The request was made JSON and parsed twice on its way inside one process. The photo waits packed."""
    given: list[tuple[GenerateRequest, Image.Image]] = []

    class Watched(FakeEngine):
        def generate(self, request, image, noise=None, on_step=None):  # type: ignore[no-untyped-def]
            given.append((request, image))
            return super().generate(request, image, noise, on_step)

    queue = make_queue(Watched(fault=gate))
    queue.submit(SMALL, Image.new("RGB", (8, 8)), door="cli")
    assert gate.reached.wait(DEADLINE_S)
    job = queue.submit(SMALL, dot, door="cli")
    gate.open()
    assert final(queue, job).request is job.request
    assert given[1][0] is job.request
    assert given[1][1].tobytes() == dot.tobytes()
