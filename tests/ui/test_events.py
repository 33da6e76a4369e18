"""The events' functions without a browser: what they answer when a job, the job table or the memory is not there."""

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from starlette.requests import Request

from i2v.engine.fake import FakeEngine
from i2v.engine.memory import Plan
from i2v.errors import InvalidRequest, Unavailable
from i2v.jobs.job import Job
from i2v.jobs.queue import JobQueue
from i2v.mutex import GpuMutex
from i2v.notes import Note
from i2v.request import GenerateRequest, PublicLimits
from i2v.settings import Settings
from i2v.ui import form, sheet, stage
from i2v.ui.banner import banner
from i2v.ui.desk import LOOKED, Desk, photo_url
from i2v.ui.form import GREETED
from i2v.ui.hint import about_prompt
from i2v.ui.results import Results
from i2v.ui.sweep import Shown
from i2v.ui.system import System, facts
from i2v.ui.texts import TABLE, Say, explained, told
from tests.conftest import ROOT

NOBODY: Any = None  # the request of an event: without one the page speaks English
MODEL, BANNER, STAGE = (1 + LOOKED.index(name) for name in ("model", "banner", "stage"))
SAY, SAY_CHINESE = Say("en"), Say("zh")
FRESH = [form.defaults(None)[name] for name in GREETED]  # a form that nobody has touched
DOT = Image.new("RGB", (64, 64), (200, 100, 50))
MakeQueue = Callable[..., JobQueue]


@pytest.fixture
def make_queue(tmp_path: Path) -> Iterator[MakeQueue]:
    made: list[JobQueue] = []

    def make(engine: FakeEngine | None = None) -> JobQueue:
        queue = JobQueue(settings_in(tmp_path))
        queue.attach(engine or FakeEngine(), GpuMutex())
        queue.start()
        made.append(queue)
        return queue

    yield make
    for queue in made:
        queue.stop(5.0)


def settings_in(folder: Path) -> Settings:
    return Settings(outputs=folder / "outputs", model="fake", min_free_mb=0)


def finished(queue: JobQueue, seed: int = 1) -> Job:
    request = GenerateRequest(prompt="night falls", width=64, height=64, num_frames=2, steps=1, seed=seed)
    return queue.wait_sync(queue.submit(request, DOT, door="ui").id, 60)


def is_skip(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"__type__"}


def test_delete_of_a_draft_goes_back_to_the_other_drafts(make_queue: MakeQueue, tmp_path: Path) -> None:
    """The text of what is shown was taken for a job id: Delete failed for each draft of a sweep."""
    queue = make_queue()
    ids = tuple(finished(queue, seed).id for seed in range(4))
    results = Results(settings_in(tmp_path), queue)
    shown, notice = results.delete(Shown(job=ids[1], sheet=ids).one(ids[1]), NOBODY)
    assert Shown.read(shown) == Shown(sheet=(ids[0], ids[2], ids[3]))
    assert "good" in notice
    assert {job.id for job in queue.list()} == {ids[0], ids[2], ids[3]}
    shown, _ = results.delete(ids[0], NOBODY)
    assert shown is None


def test_a_memory_too_small_for_any_job_is_said_on_the_system_tab(make_queue: MakeQueue, tmp_path: Path) -> None:
    queue = make_queue(FakeEngine(max_pixels=100))
    for say in (SAY, SAY_CHINESE):
        assert "does not fit into memory" in facts(say, settings_in(tmp_path), queue)


def test_a_job_table_that_does_not_answer_is_said_in_the_banner_and_the_stage_stays(
    make_queue: MakeQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = make_queue()
    job = finished(queue)
    desk = Desk(settings_in(tmp_path), queue)
    seen = desk.look(job.id, "", NOBODY)[0]
    with monkeypatch.context() as failing:

        def fail(*_: Any, **__: Any) -> Any:
            raise Unavailable("the job table does not answer")

        failing.setattr(JobQueue, "get", fail)
        failing.setattr(JobQueue, "list", fail)
        answer = desk.look(job.id, seen, NOBODY)
        assert "the job table does not answer" in answer[BANNER]
        assert is_skip(answer[STAGE])
        again = desk.look(job.id, answer[0], NOBODY)
        assert all(is_skip(part) for part in again)
        opened = desk.open(job.id, None, NOBODY)
        assert is_skip(opened[0])  # it is shown already
        assert "stage" in opened[1 + STAGE]
    back = desk.look(job.id, answer[0], NOBODY)
    assert "does not answer" not in back[BANNER]
    assert is_skip(back[STAGE])


def test_the_name_of_the_model_is_told_once_and_again_after_a_restart_but_never_taken_back(
    make_queue: MakeQueue, tmp_path: Path
) -> None:
    """A server that starts again has no model for a while; the form was greeted anew when it was back."""
    queue = make_queue()
    desk = Desk(settings_in(tmp_path), queue)
    first = desk.look(None, "", NOBODY)
    assert first[MODEL] == queue.model.name
    assert is_skip(desk.look(None, first[0], NOBODY)[MODEL])
    started_again = Desk(settings_in(tmp_path), JobQueue(settings_in(tmp_path / "other")))
    assert is_skip(started_again.look(None, "", NOBODY)[MODEL])
    assert all(is_skip(part) for part in started_again.greet("fake", "", "", *FRESH, NOBODY))
    assert desk.look(None, "", NOBODY)[MODEL] == queue.model.name


def test_a_greeting_fills_in_what_nobody_has_changed_and_another_model_begins_anew(
    make_queue: MakeQueue, tmp_path: Path
) -> None:
    """Whatever was typed while the model loaded was put back to the model's own settings."""
    queue = make_queue()
    desk = Desk(settings_in(tmp_path), queue)
    typed = [*FRESH[:1], 9, *FRESH[2:]]

    def values(greeted: str) -> list[Any]:
        name, _, about, quality, *fields = desk.greet("fake", greeted, "", *typed, NOBODY)
        assert name == "fake"
        assert is_skip(about)
        assert quality == ("standard" if greeted != "fake" else None)  # 50 steps, which stay, are none of its qualities
        return [None if is_skip(field) else field.get("value") for field in fields]

    assert values("") == ["256x256", None, None, 20, None]
    assert values("fake") == [None] * 5
    assert values("demo") == ["256x256", 16, None, 20, None]


def test_settings_of_a_stronger_model_come_into_the_range_of_this_one(
    make_queue: MakeQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slider went to 20 beside the words that this model works with 1 to 9."""
    demo = FakeEngine().info
    narrow = replace(demo, guidance_range=(1.0, 9.0))
    queue = make_queue()
    request = GenerateRequest(prompt="night falls", width=64, height=64, guidance_scale=12.0)
    place_of = form.Form.names().index("guidance_scale") - 1
    assert form.values_of(request, narrow)[place_of] == 9.0
    assert form.values_of(request, demo)[place_of] == 12.0
    monkeypatch.setattr(JobQueue, "model", narrow)
    slider = Desk(settings_in(tmp_path), queue).greet("fake", "", "", *FRESH, NOBODY)[-1]
    assert (slider["minimum"], slider["maximum"]) == (1.0, 9.0)
    beyond = [*FRESH[:-1], 12.0]
    slider = Desk(settings_in(tmp_path), queue).greet("fake", "demo", "", *beyond, NOBODY)[-1]
    assert slider["value"] == 9.0
    kept = Desk(settings_in(tmp_path), queue).greet("fake", "", "", *beyond, NOBODY)[-1]
    assert kept["value"] == 9.0  # what somebody has set stays, as far as the slider takes it


def test_every_event_answers_when_the_queue_has_stopped(make_queue: MakeQueue, tmp_path: Path) -> None:
    """Each tick of the page's clock raised an exception while the server was stopping."""
    queue = make_queue()
    job = finished(queue)
    settings = settings_in(tmp_path)
    desk, results = Desk(settings, queue), Results(settings, queue)
    queue.stop(5.0)
    assert "shutting down" in desk.look(job.id, "", NOBODY)[BANNER]
    assert "shutting down" in desk.open(job.id, None, NOBODY)[1 + BANNER]
    assert "bad" in results.cards("", 24, NOBODY)[0]
    assert "bad" in results.reuse(job.id, NOBODY)[0]
    assert "bad" in desk.extend(job.id, NOBODY)[1]
    assert "bad" in results.delete(job.id, NOBODY)[1]
    assert "bad" in desk.cancel(job.id, NOBODY)
    assert "state" in System(settings, queue).facts(NOBODY).lower()
    assert is_skip(desk.same_seed(job.id))
    assert desk.lock(True, job.id).isdecimal()


@pytest.mark.parametrize("size", ["0x0", "0x256", "-1x-1", "256x0"])
def test_a_size_of_nothing_is_refused_in_words(make_queue: MakeQueue, tmp_path: Path, size: str) -> None:
    """The crop was drawn first, and divided by the size."""
    settings = settings_in(tmp_path)
    values = form.defaults(None) | {
        "photo": None,
        "prompt": "night falls",
        "negative_prompt": "",
        "size": size,
        "fit": "crop",
        "motion_fps": 16,
        "preset": "exact",
        "seed": "",
    }
    given = [values[name] for name in form.Form.names()[1:]]
    crop, refusal = Desk(settings, make_queue()).foresee("640x480", {"path": "photo"}, *given, NOBODY)
    assert crop == ""
    assert "bad" in refusal


def form_values(**changed: Any) -> dict[str, Any]:
    plain = {"prompt": "night falls", "negative_prompt": "", "fit": "crop", "motion_fps": 16, "preset": "exact"}
    return form.defaults(None) | plain | {"seed": ""} | changed


@pytest.mark.parametrize("size", ["512 x 512", " 512x512"])
def test_a_size_may_be_typed_with_spaces(size: str) -> None:
    read = form.read_request(Say("en"), form_values(size=size), (640, 480), PublicLimits(), None)
    assert (read.width, read.height) == (512, 512)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"size": "8192x8192"}, "width is 8192; 128 to 1280 is wanted"),
        ({"num_frames": 500}, "num_frames is 500; 8 to 32 is wanted"),
    ],
)
def test_the_page_names_the_range_that_the_routes_name(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        form.read_request(Say("en"), form_values(**changed), (640, 480), PublicLimits(), None)
    assert refused.value.message == words


def test_cancel_goes_on_with_the_others_where_one_was_deleted(make_queue: MakeQueue, tmp_path: Path) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def hold(stage: str, step: int) -> None:
        inside.set()
        assert go_on.wait(60)

    queue = make_queue(FakeEngine(fault=hold))
    request = GenerateRequest(prompt="night falls", width=64, height=64, num_frames=2, steps=2, seed=1)
    running, first, deleted = (queue.submit(request, DOT, door="ui") for _ in range(3))
    assert inside.wait(60)
    queue.delete(deleted.id)
    assert Desk(settings_in(tmp_path), queue).cancel(f"{running.id},{first.id},{deleted.id}", NOBODY) == ""
    assert queue.get(first.id).status == "cancelled"
    go_on.set()
    assert queue.wait_sync(running.id).status == "cancelled"


def test_no_click_waits_for_a_step_to_end(make_queue: MakeQueue, tmp_path: Path) -> None:
    """Cancel and Delete took the threads of the routes, forty in all, for up to a step each."""
    inside, go_on = threading.Event(), threading.Event()

    def hold(stage: str, step: int) -> None:
        inside.set()
        assert go_on.wait(60)

    queue = make_queue(FakeEngine(fault=hold))
    settings = settings_in(tmp_path)
    desk, results = Desk(settings, queue), Results(settings, queue)
    request = GenerateRequest(prompt="night falls", width=64, height=64, num_frames=2, steps=2, seed=1)
    job, waiting = (queue.submit(request, DOT, door="ui") for _ in range(2))
    assert inside.wait(60)
    for unfinished in (job, waiting):
        shown, notice = results.delete(unfinished.id, NOBODY)  # its button is that of a finished video
        assert is_skip(shown)
        assert "cancel it first" in notice
    assert desk.cancel(f"{job.id},{waiting.id}", NOBODY) == ""
    assert queue.get(job.id).status == "in_progress"  # the step that is under way ends
    assert queue.get(waiting.id).status == "cancelled"
    go_on.set()
    assert queue.wait_sync(job.id, 60).status == "cancelled"
    assert "good" in results.delete(job.id, NOBODY)[1]
    assert [left.id for left in queue.list()] == [waiting.id]


@pytest.mark.parametrize("seen", ["x", "1 2 3 4 5 6 7 8 9", "- - - - - -", None, 7, "\0"])
def test_whatever_a_browser_says_it_has_seen_it_gets_what_it_has_not(
    make_queue: MakeQueue, tmp_path: Path, seen: Any
) -> None:
    desk = Desk(settings_in(tmp_path), make_queue())
    answer = desk.look(None, seen, NOBODY)
    assert not any(is_skip(part) for part in answer)
    assert all(is_skip(part) for part in desk.look(None, answer[0], NOBODY))


def test_a_photo_that_could_not_be_read_for_a_moment_is_shown_afterwards(
    make_queue: MakeQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty picture was remembered for as long as the server ran."""
    queue = make_queue()
    job = finished(queue)
    desk = Desk(settings_in(tmp_path), queue)
    with monkeypatch.context() as failing:

        def fail(*_: Any) -> Any:
            raise Unavailable("the job table does not answer")

        failing.setattr(JobQueue, "input_image", fail)
        assert "data:image/jpeg" not in desk.look(job.id, "", NOBODY)[STAGE]
    assert photo_url(queue, job.id) in desk.look(job.id, "", NOBODY)[STAGE]


def test_a_running_sheet_is_not_read_out_and_its_bars_have_names(make_queue: MakeQueue) -> None:
    queue = make_queue()
    done = finished(queue)
    longer = done.request.model_copy(update={"steps": 10})
    running = replace(done, request=longer, status="in_progress", stage="denoise", step=4)
    html = sheet.sheet(SAY, Shown(sheet=(done.id, running.id)), [done, running], None, False)
    assert "aria-live='off'" in html
    assert "role='progressbar'" in html
    assert f"aria-valuenow='{running.progress}'" in html
    assert "aria-label='Step 4 of 10'" in html
    assert "aria-live='polite'" in sheet.sheet(SAY, Shown(sheet=(done.id,)), [done], None, False)


def test_a_failed_draft_is_explained_in_chinese(make_queue: MakeQueue) -> None:
    job = finished(make_queue())
    failed = replace(job, status="failed", error_code="generation_failed", error_message="it broke")
    assert "生成失败。（it broke）" in sheet.sheet(SAY_CHINESE, Shown(sheet=(job.id,)), [failed], None, False)


@pytest.mark.parametrize("code", ["not_found", "conflict", "unavailable", "video_lost"])
def test_every_refusal_that_the_page_meets_is_explained_in_chinese(code: str) -> None:
    assert explained(SAY_CHINESE, code, "why") != "why"
    assert "why" in explained(SAY_CHINESE, code, "why")


def test_no_text_is_kept_that_nothing_shows() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "i2v" / "ui").rglob("*.py"))
    beginnings, ends = re.findall(r'f["\'](\w+_)\{', code), re.findall(r'f["\']\{\w+\}(_\w+)["\']', code)
    names = {key for key in TABLE if re.search(rf'["\']{key}["\']', code)}
    made = {key for key in TABLE if key.startswith(tuple(beginnings)) or key.endswith(tuple(ends))}
    assert set(TABLE) - names - made == set()


REAL = replace(FakeEngine().info, kind="real")
WORDY = replace(FakeEngine().info, kind="demo", vocabulary=("night falls", "static"), phrases=("night falls",))


def test_what_the_engine_says_of_a_video_stands_in_the_readers_language(make_queue: MakeQueue) -> None:
    """A row of an older version holds English sentences: they are shown as they are, in any language."""
    done = finished(make_queue())
    notes = (Note("guidance_kept", {"asked": 12.0, "kept": 9.0, "low": 1.0, "high": 9.0}), "An old sentence.")
    warnings = (Note("hardly_moves", {"advice": (Note("another_seed"),)}), "An old warning.")
    assert done.result is not None
    result = replace(done.result, plan=Plan().note(), notes=notes, warnings=warnings)
    said: dict[str, Any] = {"path": "", "url": "", "photo": "", "preview": None, "waiting_for_model": False}
    html = stage.job(SAY_CHINESE, replace(done, result=result), **said)
    for words in (
        "引导强度 12 已改为 9",
        "An old sentence.",
        "可换一个种子。",
        "An old warning.",
        "权重常驻，引导一遍",
    ):
        assert words in html
    assert "all resident, one guidance pass" in stage.job(SAY, replace(done, result=result), **said)
    old = replace(result, plan="all resident")
    assert "all resident" in stage.job(SAY_CHINESE, replace(done, result=old), **said)


def test_a_model_that_knows_no_word_of_a_prompt_is_said_before_its_language() -> None:
    """ "Followed poorly" was said of a model that follows nothing but its own phrases."""
    assert "night falls" in about_prompt(SAY, "日落时分", WORDY)
    assert "English" in about_prompt(SAY, "日落时分", REAL)
    assert about_prompt(SAY, "night falls", WORDY) == ""


def test_the_banner_explains_loading_and_its_failure_in_chinese(tmp_path: Path) -> None:
    queue = JobQueue(settings_in(tmp_path))
    queue.report_loading(Note("loading", {"part": Note("text_encoder")}), 0.5)
    assert "模型正在加载: 正在读取文本编码器 50 %" in banner(SAY_CHINESE, queue)
    assert "The model is loading: loading text encoder 50 %" in banner(SAY, queue)
    refusal = queue._phase.refusal()
    assert refusal.message == "the model is not loaded yet: loading text encoder (50%)"
    assert told(SAY_CHINESE, refusal) == "模型尚未加载：正在读取文本编码器（50%）"
    queue.fail_loading("no such model")
    assert "原因：no such model" in banner(SAY_CHINESE, queue)


def test_the_examples_name_the_address_that_clients_see(make_queue: MakeQueue, tmp_path: Path) -> None:
    """Behind a proxy they named the server's own address, which no client reaches."""
    scope = {"type": "http", "path": "/", "headers": [], "scheme": "http", "server": ("127.0.0.1", 7860)}
    asked = SimpleNamespace(headers={}, client=None, request=Request(scope))
    values = form.defaults(None) | {
        "prompt": "night falls",
        "negative_prompt": "",
        "fit": "crop",
        "motion_fps": 16,
        "preset": "exact",
        "seed": "",
    }
    given = [values[name] for name in form.Form.names()[1:]]
    queue = make_queue()
    own = System(settings_in(tmp_path), queue).tab(*given, asked)
    assert all("http://127.0.0.1:7860/" in code for code in own[1:])
    public = settings_in(tmp_path).model_copy(update={"public_url": "https://videos.example/"})
    proxied = System(public, queue).tab(*given, asked)
    assert all("https://videos.example/" in code and "7860" not in code for code in proxied[1:])


def test_a_page_names_decoding_and_gives_it_its_part_of_the_bar(make_queue: MakeQueue) -> None:
    done = finished(make_queue())
    job = replace(
        done, status="in_progress", stage="decode", step=done.request.steps, done=0.4, eta_s=12.0, result=None
    )
    said: dict[str, Any] = {"path": "", "url": "", "photo": "", "preview": None, "waiting_for_model": False}
    html = stage.job(SAY, job, **said)
    assert "Decoding frames · about 12 s left" in html
    assert "width:40%" in html
    assert "正在解码画面" in stage.job(SAY_CHINESE, job, **said)
