"""The `i2v` command as a user types it: on this machine with the fake engine, and against a real server."""

import io
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image
from rich.console import Console

from i2v import serve, video
from i2v.cli import commands, doctor, inputs, local
from i2v.cli.local import Local
from i2v.cli.terminal import Display, jobs_lines
from i2v.client import Client, JobCancelled, Video
from i2v.engine.fake import FakeEngine
from i2v.engine.interface import Progress
from i2v.errors import DoesNotFit, ModelUnavailable
from i2v.flags import flags
from i2v.jobs.queue import JobQueue
from i2v.mutex import GpuMutex
from i2v.notes import Note
from i2v.request import GenerateRequest
from i2v.server.app import create_app
from i2v.settings import Settings
from tests.conftest import ROOT

PHOTO = ROOT / "tests" / "assets" / "coffee.jpg"
FAKE = "--model fake --size 128x64 --num-frames 8 --steps 10"
DEADLINE_S = 60


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("generate", PHOTO, "a prompt", "--seed 7")`: one string of options is split, the rest are arguments."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Ended:
        words = [
            word
            for part in arguments
            for word in (shlex.split(part) if isinstance(part, str) and part.startswith("-") else [str(part)])
        ]
        try:
            commands.main(words)
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = capsys.readouterr()
        return Ended(code, out, err)

    return run


@pytest.fixture
def engine() -> FakeEngine:
    """The engine of `server`; a test that must meet a running job makes its steps slow."""
    return FakeEngine()


@pytest.fixture
def server(tmp_path: Path, engine: FakeEngine) -> Iterator[str]:
    """The address of a real server with the fake engine."""
    settings = Settings(outputs=tmp_path / "server", model="fake", ui=False, min_free_mb=0)
    queue = JobQueue(settings)
    queue.attach(engine, GpuMutex())
    running = uvicorn.Server(uvicorn.Config(create_app(settings, queue), log_config=None, ws="none"))
    with socket.create_server(("127.0.0.1", 0)) as listener:  # callers that come early wait in its backlog
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            running.should_exit = True
            thread.join(DEADLINE_S)


def settings_in(path: Path) -> dict[str, object]:
    return json.loads(video.read_metadata(path)["request"])


# Generate on this machine


def test_generate_writes_the_video_asked_for_and_prints_only_its_path(run: Run, tmp_path: Path) -> None:
    ended = run("generate", PHOTO, "the sun sets", f"-o a.mp4 {FAKE} --fps 4 --seed 7")
    assert (ended.code, ended.out) == (0, "a.mp4\n")
    assert video.probe(tmp_path / "a.mp4") == video.VideoFacts(8, 4.0, 128, 64, "h264", "yuv420p")
    assert "Seed: 7" in ended.err
    assert "not a model" in ended.err  # the fake engine says so
    assert os.listdir(tmp_path) == ["a.mp4"]  # no folder, no lock, no part file
    frames = video.read_frames(tmp_path / "a.mp4")
    assert np.abs(frames[0].astype(int) - frames[-1]).max() > 30


def test_every_option_reaches_the_job(run: Run, tmp_path: Path) -> None:
    options = (
        "--width 64 --height 128 --num-frames 9 --fps 5 --motion-fps 12 --steps 11 --guidance-scale 3.5 --seed 9 "
        "--negative-prompt 'blurry, dark' --preset turbo --fit pad"
    )
    ended = run("generate", PHOTO, "a wish", f"--model fake -o a.mp4 {options}")
    assert ended.code == 0
    assert settings_in(tmp_path / "a.mp4") == {
        "prompt": "a wish",
        "negative_prompt": "blurry, dark",
        "width": 64,
        "height": 128,
        "num_frames": 9,
        "fps": 5,
        "motion_fps": 12,
        "steps": 11,
        "guidance_scale": 3.5,
        "seed": 9,
        "preset": "turbo",
        "fit": "pad",
    }


def test_every_field_of_a_request_has_an_option(run: Run) -> None:
    said = run("generate", "--help").out
    for name in GenerateRequest.model_fields:
        assert name == "prompt" or f"--{name.replace('_', '-')}" in said


def test_the_same_seed_gives_the_same_file(run: Run, tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        assert run("generate", PHOTO, "x", f"-q -o {name} {FAKE} --seed 3").code == 0
    one, other = (video.read_frames(tmp_path / name) for name in ("a.mp4", "b.mp4"))
    assert np.array_equal(one, other)


def test_without_a_name_the_video_gets_one_by_the_time(run: Run, tmp_path: Path) -> None:
    ended = run("generate", PHOTO, "x", FAKE)
    assert re.fullmatch(r"video_\d{8}_\d{6}_[a-z0-9]{6}\.mp4\n", ended.out)
    assert (tmp_path / ended.out.strip()).is_file()


def test_quiet_says_nothing_but_the_path(run: Run) -> None:
    ended = run("generate", PHOTO, "x", f"-q -o a.mp4 {FAKE}")
    assert (ended.out, ended.err) == ("a.mp4\n", "")


def test_from_a_video_its_settings_run_again(run: Run, tmp_path: Path) -> None:
    run("generate", PHOTO, "the sun sets", f"-o a.mp4 {FAKE} --seed 5 --negative-prompt dark")
    ended = run("generate", PHOTO, "--from a.mp4 -o b.mp4 --model fake")
    assert ended.code == 0
    assert settings_in(tmp_path / "b.mp4") == settings_in(tmp_path / "a.mp4")
    assert np.array_equal(video.read_frames(tmp_path / "a.mp4"), video.read_frames(tmp_path / "b.mp4"))


def test_from_a_video_options_change_what_they_name_and_the_first_frame_stands_for_the_photo(
    run: Run, tmp_path: Path
) -> None:
    run("generate", PHOTO, "the sun sets", f"-o a.mp4 {FAKE} --seed 5")
    ended = run("generate", "--from a.mp4 -o b.mp4 --model fake --seed 6 --num-frames 4")
    assert ended.code == 0
    assert "first frame" in ended.err
    assert settings_in(tmp_path / "b.mp4") == settings_in(tmp_path / "a.mp4") | {"seed": 6, "num_frames": 4}


def test_a_video_made_elsewhere_cannot_be_run_again(run: Run, tmp_path: Path) -> None:
    video.write_video(np.zeros((2, 16, 16, 3), np.uint8), tmp_path / "a.mp4", fps=8, metadata={})
    ended = run("generate", "--from a.mp4 --model fake")
    assert (ended.code, ended.err) == (2, "[ERROR] a.mp4 holds no settings; only videos made by i2v do\n")
    video.write_video(np.zeros((2, 16, 16, 3), np.uint8), tmp_path / "b.mp4", fps=8, metadata={"request": '{"x": 1}'})
    assert "damaged" in run("generate", "--from b.mp4 --model fake").err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("generate",), "a prompt is missing"),
        (("generate", PHOTO), "a prompt is missing"),
        (("generate", PHOTO, "  "), "the prompt is empty"),
        (("generate", PHOTO, "x", "--size 255x256"), "size is 255x256; multiples of 8 are wanted, such as 256x256"),
        (("generate", PHOTO, "x", "--size big"), 'size must be WIDTHxHEIGHT in pixels, such as "1280x720"'),
        (("generate", PHOTO, "x", "--size 64x64 --width 64"), "not both"),
        (("generate", PHOTO, "x", "--width 64"), "go together"),
        (("generate", PHOTO, "x", "--steps 0"), "steps: Input should be greater than or equal to 1"),
        (("generate", PHOTO, "x", "--preset best"), "preset"),
        (("generate", PHOTO, "x", "--guidance-scale nan"), "guidance_scale"),
        (("generate", PHOTO, "x", "--seed -1"), "seed"),
        (("generate", PHOTO, "x", "-o a.avi"), "a.avi does not end in .mp4"),
        (("generate", PHOTO, "x", "-o none/a.mp4"), "there is no folder none"),
        (("generate", "none.jpg", "x"), "the photo none.jpg cannot be read: No such file"),
        (("generate", ".", "x"), "the photo . cannot be read: Is a directory"),
        (("generate", "http://127.0.0.1/a.png", "x"), "download the photo"),
        (("generate", Path(__file__), "x"), "not an image"),
        (("generate", "--from none.mp4"), "there is no file none.mp4"),
        (("generate", f"--from {PHOTO}"), "not a readable MP4"),
        (("generate", PHOTO, "x", "--dtype float8"), "dtype: Input should be 'auto'"),
        (("generate", PHOTO, "x", "--config none.yaml"), "none.yaml cannot be read"),
        (("inspect", "none.mp4"), "there is no file none.mp4"),
        (("jobs", "cancel"), "needs the id of a job"),
        (("batch", "none.csv"), "none.csv cannot be read"),
    ],
)
def test_a_wrong_call_is_one_sentence_and_exit_code_two(run: Run, arguments: tuple[object, ...], says: str) -> None:
    words = (*arguments, "--model fake") if arguments[0] == "generate" else arguments
    ended = run(*words)
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith("[ERROR] ")
    assert says in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("words", ["--nonsense", "generate --steps x", "jobs explode", "nonsense"])
def test_a_misspelt_call_is_exit_code_two_without_a_traceback(run: Run, words: str) -> None:
    ended = run(*words.split())
    assert ended.code == 2
    assert "Traceback" not in ended.err


def test_an_unknown_variable_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("I2V_NONSENSE", "1")
    ended = run("generate", PHOTO, "x", FAKE)
    assert ended.code == 2
    assert "I2V_NONSENSE" in ended.err


def test_settings_come_from_the_file_then_variables_then_flags(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.yaml").write_text("model: /no/such/folder\ndefault_preset: turbo\n")
    monkeypatch.setenv("I2V_MODEL", "/also/none")
    ended = run("generate", PHOTO, "x", f"--config c.yaml -o a.mp4 {FAKE}")
    assert ended.code == 0
    assert settings_in(tmp_path / "a.mp4")["preset"] == "turbo"


def test_a_model_that_is_not_there_is_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise ModelUnavailable("no weights here; --model demo runs without any")

    monkeypatch.setattr(local, "load_engine", missing)
    ended = run("generate", PHOTO, "x", "-o a.mp4 --model some/model --device cpu")
    assert (ended.code, ended.err) == (1, "[ERROR] no weights here; --model demo runs without any\n")


def test_a_defect_is_one_sentence_too_and_shows_its_traceback_on_request(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(inputs, "check_target", broken)
    ended = run("generate", PHOTO, "x", FAKE)
    assert ended.code == 1
    assert ended.err.startswith("[ERROR] unexpected ZeroDivisionError: odd")
    with pytest.raises(ZeroDivisionError):
        run("--traceback", "generate", PHOTO, "x", FAKE)


# The local runner


def request(**more: object) -> GenerateRequest:
    return GenerateRequest.model_validate(
        {"prompt": "x", "width": 64, "height": 64, "num_frames": 4, "steps": 3} | more
    )


def test_a_job_waits_for_the_mutex_and_says_for_whom(tmp_path: Path, photo: Image.Image) -> None:
    mutex = GpuMutex(tmp_path / "lock")
    waits: list[str] = []
    release = threading.Event()
    holding = threading.Event()

    def hold() -> None:
        with mutex.hold():
            holding.set()
            release.wait(DEADLINE_S)

    def on_wait(who: str) -> None:
        waits.append(who)
        assert not (tmp_path / "a.mp4").exists()
        release.set()

    holder = threading.Thread(target=hold)
    holder.start()
    assert holding.wait(DEADLINE_S)
    job = Local(FakeEngine(), mutex).run(request(), photo, tmp_path / "a.mp4", on_wait=on_wait)
    holder.join(DEADLINE_S)
    assert waits == ["another job of this server"]
    assert not mutex.held
    assert job.result is not None
    assert job.result.bytes == (tmp_path / "a.mp4").stat().st_size


def test_a_job_that_does_not_fit_is_refused_before_the_mutex(tmp_path: Path, photo: Image.Image) -> None:
    mutex = GpuMutex()
    with mutex.hold(), pytest.raises(DoesNotFit):
        Local(FakeEngine(max_pixels=100), mutex).run(request(), photo, tmp_path / "a.mp4")


def test_a_job_that_is_stopped_leaves_no_file_and_the_mutex_free(tmp_path: Path, photo: Image.Image) -> None:
    mutex = GpuMutex()

    def stop(progress: Progress) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Local(FakeEngine(), mutex).run(request(), photo, tmp_path / "a.mp4", on_step=stop)
    assert os.listdir(tmp_path) == []
    assert not mutex.held


# Through a server


@pytest.mark.slow
def test_generate_through_a_server_downloads_the_same_video_as_here(run: Run, server: str, tmp_path: Path) -> None:
    options = "--size 128x128 --num-frames 8 --steps 10 --seed 7 --fit pad --preset turbo --motion-fps 3"
    ended = run("generate", PHOTO, "the sun sets", f"-o a.mp4 --url {server} {options}")
    assert (ended.code, ended.out) == (0, "a.mp4\n"), ended.err
    assert "seed 7" in ended.err
    run("generate", PHOTO, "the sun sets", f"-o b.mp4 --model fake {options}")
    assert settings_in(tmp_path / "a.mp4") == settings_in(tmp_path / "b.mp4")
    assert np.array_equal(video.read_frames(tmp_path / "a.mp4"), video.read_frames(tmp_path / "b.mp4"))


@pytest.mark.slow
def test_a_video_of_a_server_runs_again_through_it(run: Run, server: str, tmp_path: Path) -> None:
    run("generate", PHOTO, "x", f"-o a.mp4 --url {server} --size 128x128 --num-frames 8 --steps 10")
    ended = run("generate", PHOTO, f"--from a.mp4 -o b.mp4 --url {server}")
    assert ended.code == 0, ended.err
    assert settings_in(tmp_path / "a.mp4") == settings_in(tmp_path / "b.mp4")


def test_a_refusal_of_the_server_is_one_sentence(run: Run, server: str) -> None:
    ended = run("generate", PHOTO, "x", f"-o a.mp4 --url {server} --steps 5 -q")
    assert (ended.code, ended.err) == (2, "[ERROR] steps is 5; 10 to 100 is wanted\n")


@pytest.mark.slow
def test_jobs_lists_shows_downloads_cancels_and_deletes(
    run: Run, server: str, engine: FakeEngine, tmp_path: Path
) -> None:
    with Client(server) as client:
        first = client.generate(PHOTO, "one wish", size="128x128", num_frames=8, steps=10)
        engine.step_s = 0.5
        long = client.submit(PHOTO, "another wish", size="128x128", num_frames=8, steps=100)
    listed = run("jobs", f"--url {server}")
    assert listed.code == 0
    lines = listed.out.splitlines()
    assert [line.split()[0] for line in lines] == ["id", long.id, first.id]
    assert "one wish" in lines[2]
    assert len(run("jobs", "list", f"--url {server} --limit 1").out.splitlines()) == 2
    shown = run("jobs", "show", first.id, f"--url {server}")
    assert re.search(r"^status +completed", shown.out, re.MULTILINE)
    assert re.search(r"^created_at +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d$", shown.out, re.MULTILINE)
    assert re.search(r"^stage_seconds.denoise +[\d.]+$", shown.out, re.MULTILINE)
    assert "None" not in shown.out
    assert run("jobs", "download", first.id, f"--url {server} -o got.mp4").out == "got.mp4\n"
    assert video.probe(tmp_path / "got.mp4").frames == 8
    assert run("jobs", "cancel", long.id, f"--url {server}").out == f"{long.id}: cancelled\n"
    assert run("jobs", "delete", first.id, f"--url {server}").out == f"{first.id}: deleted\n"
    gone = run("jobs", "show", first.id, f"--url {server}")
    assert gone.code == 1
    assert gone.err.startswith("[ERROR] ")


def test_a_listed_job_shows_its_whole_id_however_narrow_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table fitted to 80 columns cut the id that `i2v jobs cancel` needs."""
    monkeypatch.setenv("COLUMNS", "20")
    job = Video(id="video_" + "f" * 24, status="in_progress", progress=5, prompt="a\x1b[2Jb\n" + "word " * 50)
    heading, line = jobs_lines([job])
    assert line.startswith(f"{job.id} in_progress")
    assert "\x1b" not in line
    assert line.endswith(" ...")
    assert heading.split()[0] == "id"


def test_no_server_is_one_sentence(run: Run) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "__init__", _one_attempt(Client.__init__))
        ended = run("jobs", "--url http://127.0.0.1:9")
    assert (ended.code, ended.err) == (
        1,
        "[ERROR] no server answers at http://127.0.0.1:9/; name another server with --url http://HOST:PORT\n",
    )


def _one_attempt(init: Callable[..., None]) -> Callable[..., None]:
    return lambda self, *arguments, **options: init(self, *arguments, attempts=1, **options)


@pytest.mark.slow
def test_the_client_and_the_real_server_agree(server: str, tmp_path: Path) -> None:
    """The scripted server of test_client.py answers what we wrote down; this one answers for itself."""
    with Client(server) as client:
        assert client.ready()
        seen: list[Video] = []
        made = client.generate(PHOTO, "x", on_progress=seen.append, size="128x128", num_frames=8, steps=10, seed=3)
        assert (made.status, made.progress, made.seed, made.size, made.seconds) == ("completed", 100, 3, "128x128", 1.0)
        assert seen[-1] == made
        assert set(made.stage_seconds) >= {"denoise", "write"}
        for variant, start in {"thumbnail": b"\xff\xd8", "spritesheet": b"\xff\xd8", "gif": b"GIF8"}.items():
            assert made.save(tmp_path / variant, variant).read_bytes().startswith(start)
        key = "the same wish"
        one = client.submit(PHOTO, "y", idempotency_key=key.replace(" ", "-"), size="128x128", steps=10)
        two = client.submit(PHOTO, "y", idempotency_key=key.replace(" ", "-"), size="128x128", steps=10)
        assert one.id == two.id
        again = client.remix(made.id, "z")
        assert client.wait(again.id).prompt == "z"
        assert [video.id for video in client.list_all()] == [again.id, one.id, made.id]
        result = client.predict(PHOTO, "x", 256, 8, 8, 10, 7.5, seed=3, save_to=tmp_path / "p.mp4")
        assert result["success"] is True
        assert result["time"].endswith("s")
        assert "Seed: 3" in result["summary"]
        assert video.probe(tmp_path / "p.mp4") == video.VideoFacts(8, 8.0, 256, 256, "h264", "yuv420p")
        refused = client.predict(PHOTO, "x", 300)
        assert (refused["success"], refused["status"], refused["field"]) == (False, 422, "resolution")


@pytest.mark.slow
def test_control_c_in_the_client_stops_the_job_on_the_server(server: str, engine: FakeEngine) -> None:
    engine.step_s = 0.5

    def interrupt(video: Video) -> None:
        if video.status == "in_progress":
            raise KeyboardInterrupt

    with Client(server) as client:
        with pytest.raises(KeyboardInterrupt):
            client.generate(PHOTO, "x", on_progress=interrupt, size="128x128", steps=100)
        (stopped,) = client.list()
        with pytest.raises(JobCancelled):
            client.wait(stopped.id)


# Inspect, doctor, serve


def test_inspect_shows_facts_and_settings(run: Run) -> None:
    run("generate", PHOTO, "日落 [bold]x[/bold]", f"-o a.mp4 {FAKE} --seed 5")
    shown = run("inspect", "a.mp4").out
    assert re.search(r"^size +128x64", shown, re.MULTILINE)
    assert re.search(r"^request.seed +5 *$", shown, re.MULTILINE)
    assert "日落 [bold]x[/bold]" in shown
    found = json.loads(run("inspect", "a.mp4", "--json").out)
    assert (found["frames"], found["fps"], found["request.prompt"]) == (8, 8.0, "日落 [bold]x[/bold]")


def test_inspect_shows_each_fact_once(run: Run) -> None:
    run("generate", PHOTO, "a wish", f"-o a.mp4 {FAKE} --fps 5 --steps 17 --seed 987654")
    shown = run("inspect", "a.mp4").out
    names = [line.split()[0].removeprefix("request.") for line in shown.splitlines()]
    assert len(set(names)) == len(names)
    assert not {"num_frames", "width", "height"} & set(names), "the file's own frames and size say it"
    assert "None" not in shown
    for fact in ("a wish", "987654", " 17", " 5.0"):
        assert shown.count(f"{fact}\n") == 1


def test_inspect_shows_what_was_asked_beside_what_was_made_where_they_differ(run: Run, tmp_path: Path) -> None:
    asked = request(num_frames=4, guidance_scale=9, seed=3)
    metadata = {"guidance_scale": "4.5", "seed": "3", "request": asked.model_dump_json()}
    video.write_video(np.zeros((7, 64, 64, 3), np.uint8), tmp_path / "a.mp4", fps=8, metadata=metadata)
    found = json.loads(run("inspect", "a.mp4", "--json").out)
    assert (found["guidance_scale"], found["request.guidance_scale"]) == ("4.5", 9.0)
    assert (found["frames"], found["request.num_frames"]) == (7, 4)
    assert "seed" not in found
    assert found["request.seed"] == 3


def test_control_characters_of_a_stored_prompt_do_not_reach_the_terminal(run: Run, tmp_path: Path) -> None:
    metadata = {"prompt": "a\x1b[2Jb\x9bc"}
    video.write_video(np.zeros((1, 16, 16, 3), np.uint8), tmp_path / "a.mp4", fps=8, metadata=metadata)
    shown = run("inspect", "a.mp4").out
    assert "\x1b" not in shown
    assert "\x9b" not in shown


def test_doctor_prints_every_check_and_fails_when_one_does(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [doctor.Check("disk", True, "9 GB free"), doctor.Check("port", False, "port 1 is taken")]
    monkeypatch.setattr(doctor, "checks", lambda settings: checks)
    ended = run("doctor")
    assert (ended.code, ended.out) == (1, "[SUCCESS] disk: 9 GB free\n[ERROR] port: port 1 is taken\n")
    monkeypatch.setattr(doctor, "checks", lambda settings: checks[:1])
    assert run("doctor").code == 0


def test_serve_gets_the_settings_of_its_flags_and_its_exit_code_is_the_servers(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Settings] = []

    def stand_in(settings: Settings) -> int:
        seen.append(settings)
        return 86

    monkeypatch.setattr(serve, "serve", stand_in)
    assert (
        run("serve", "--port 0 --model fake --queue-length 3 --no-ui --resolutions 256 --resolutions 1024").code == 86
    )
    settings = seen[0]
    assert (settings.port, settings.model, settings.ui, settings.queue.length) == (0, "fake", False, 3)
    assert settings.resolutions == (256, 1024)


def test_serve_has_a_flag_for_every_setting(run: Run) -> None:
    said = run("serve", "--help").out
    for flag in flags():
        assert flag.option in said
    assert "--config" in said
    assert "--api-token" not in said  # a command line is seen by every user of the machine


def test_max_vram_is_the_same_option_under_both_names(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Settings] = []
    monkeypatch.setattr(serve, "serve", lambda settings: seen.append(settings) or 0)
    for name in ("--max-vram", "--max-vram-gb"):
        assert run("serve", f"{name} 8").code == 0
    assert [settings.max_vram_gb for settings in seen] == [8.0, 8.0]


def test_engine_flags_of_generate_are_settings() -> None:
    assert set(Settings.model_fields) >= commands.ENGINE_SETTINGS


def test_help_loads_neither_torch_nor_the_web_stack() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['i2v', '--help']\n"
        "from i2v.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'gradio', 'fastapi', 'diffusers', 'transformers', 'sqlalchemy', 'numpy', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "i2v", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", done.stdout)


# What is shown


def test_a_log_gets_a_line_for_each_tenth_and_no_control_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(Console(stderr=True)) as display:
        display.loading(Note("loading", {"part": Note("unet")}), None)
        for step in range(1, 101):
            display.step(Progress("denoise", step, 100))
        display.waiting("another process (pid 7) on the same GPU")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "loading unet"
    assert lines[1] == "denoise 1/100"
    assert lines[-2] == "denoise 100/100"
    assert len(lines) <= 14
    assert lines[-1] == "waiting for another process (pid 7) on the same GPU"


def test_a_terminal_gets_one_bar_that_is_gone_at_the_end() -> None:
    out = io.StringIO()
    with Display(Console(file=out, force_terminal=True, width=100)) as display:
        display.loading(Note("loading", {"part": Note("unet")}), 0.25)
        display.step(Progress("denoise", 3, 10))
        display.video(Video(id="v", status="queued", progress=0, position=2))
        display.video(Video(id="v", status="queued", progress=0, position=0))
        display.video(Video(id="v", status="in_progress", progress=40, eta_s=9.6))
        display.say("a line that stays")
    said = out.getvalue()
    assert "a line that stays" in said
    assert "40%, 10 s left" in said
    assert "queued, 2 before it" in said
    assert "queued, next in line" in said
    assert said.rstrip().endswith(("\x1b[2K", "\x1b[?25h"))  # the line is erased, the cursor is back
