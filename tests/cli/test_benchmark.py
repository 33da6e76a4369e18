"""`i2v bench`: how many jobs run, what is counted, and what is written down. No time is judged here."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from i2v.cli import benchmark, commands
from i2v.cli.benchmark import Benchmark, Run
from i2v.engine.fake import FakeEngine
from i2v.engine.interface import GenerationResult, Progress
from i2v.errors import DoesNotFit
from i2v.request import GenerateRequest

REQUEST = GenerateRequest(prompt="x", width=64, height=64, num_frames=2, steps=5, seed=1)


class Counting(FakeEngine):
    """Keeps the requests and photos it was given."""

    def __init__(self, **more: int) -> None:
        super().__init__(**more)
        self.given: list[tuple[GenerateRequest, tuple[int, int]]] = []

    def generate(self, request: GenerateRequest, image: Image.Image, *args: object, **more: object) -> GenerationResult:
        self.given.append((request, image.size))
        return super().generate(request, image, *args, **more)  # type: ignore[arg-type]


def bench(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        commands.main(["bench", *words])
    return int(ended.value.code or 0)


def test_the_same_job_runs_once_to_warm_up_and_then_as_often_as_asked(photo: Image.Image) -> None:
    engine, begun = Counting(), []
    found = benchmark.measure(engine, REQUEST, photo, 4, on_run=begun.append)
    assert begun == [0, 1, 2, 3, 4]
    assert engine.given == [(REQUEST, photo.size)] * 5
    assert len(found.runs) == 4
    assert all(len(seconds) == 4 for seconds in found.seconds().values())


def test_a_step_is_counted_as_the_engine_took_it_and_progress_is_passed_on(photo: Image.Image) -> None:
    class Shorter(FakeEngine):  # as a preset that takes fewer steps
        def generate(self, request: GenerateRequest, image: Image.Image, *args: object, **more: object):
            return super().generate(request.model_copy(update={"steps": 2}), image, *args, **more)

    seen: list[Progress] = []
    found = benchmark.measure(Shorter(), REQUEST, photo, 1, on_step=seen.append)
    (run,) = found.runs
    assert run.steps == 2
    assert run.step_seconds * 2 == run.stage_seconds["denoise"]
    assert [(one.step, one.steps) for one in seen if one.stage == "denoise"] == [(1, 2), (2, 2)] * 2
    assert "5 steps (2 taken)" in str(found.facts()["job"])


def test_a_job_that_does_not_fit_is_refused_before_the_warm_up(photo: Image.Image) -> None:
    engine = Counting(max_pixels=100)
    with pytest.raises(DoesNotFit):
        benchmark.measure(engine, REQUEST, photo, 1)
    assert engine.given == []


def test_the_figures_are_of_the_runs_and_not_of_the_warm_up() -> None:
    def run(seconds: float, peak: float, plan: str) -> Run:
        return Run({"encode": 1.0, "denoise": seconds, "decode": 2.0}, 5, peak, plan)

    runs = (run(10, 300, "resident"), run(30, 500, "offload"), run(20, 400, "offload"))
    found = Benchmark(FakeEngine().info, REQUEST, run(900, 9000, "none"), runs)
    assert found.raw()["median_seconds"] == {"encode": 1, "denoise": 20, "decode": 2, "job": 23, "step": 4}
    assert found.facts()["peak memory"] == "500 MB"
    assert found.facts()["plan"] == "resident; offload"
    assert found.facts()["runs"] == "3, after one of 903.00 s to warm up"


def test_the_command_shows_the_seconds_and_writes_the_raw_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "b.json"
    options = "--model fake --runs 2 --size 64x128 --num-frames 3 --steps 4 --preset fast"
    assert bench(*options.split(), "--json", str(file)) == 0
    out, err = capsys.readouterr()
    for name in ("encode", "denoise", "decode", "job", "step"):
        assert re.search(rf"^ *{name}( +\d+\.\d{{3}}){{3}} *$", out, re.MULTILINE), name
    assert re.search(r"^torch +2\.", out, re.MULTILINE)
    assert re.search(r"^job +64x128, 3 frames, 4 steps, preset fast$", out, re.MULTILINE)
    assert [line for line in err.splitlines() if "run" in line] == ["run 1 of 2", "run 2 of 2"]

    found = json.loads(file.read_text())
    assert (found["model"], found["device"], found["dtype"]) == ("fake", "cpu", "uint8")
    GenerateRequest.model_validate(found["request"])
    assert (found["request"]["width"], found["request"]["steps"], found["request"]["seed"]) == (64, 4, benchmark.SEED)
    assert len(found["runs"]) == 2
    for run in [found["warm_up"], *found["runs"]]:
        assert run["steps"] == 4
        assert run["seconds"] == sum(run["stage_seconds"].values())
    assert set(found["median_seconds"]) == {"encode", "denoise", "decode", "job", "step"}


def test_three_runs_of_a_small_job_and_no_file_without_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert bench("--model", "fake", "--quiet") == 0
    out, err = capsys.readouterr()
    assert re.search(r"^runs +3, ", out, re.MULTILINE)
    assert "256x256, 16 frames, 20 steps, preset exact" in out
    assert err == ""
    assert list(tmp_path.iterdir()) == []


def test_the_published_model_is_measured_at_its_usual_size() -> None:
    asked = GenerateRequest(**benchmark.usual("real"))
    assert (asked.width, asked.num_frames, asked.steps) == (512, 16, 50)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--json", "none/b.json"), "there is no folder none"),
        (("--json", "."), "is a folder"),
        (("--image", "none.png"), "none.png cannot be read"),
        (("--steps", "0"), "steps: "),
        (("--size", "9"), "size must be WIDTHxHEIGHT"),
    ],
)
def test_a_wrong_call_is_refused_before_the_model_is_loaded(
    words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("i2v.cli.local.load", lambda *_: pytest.fail("a model was loaded"))
    assert bench("--model", "fake", *words) == 2
    assert says in capsys.readouterr().err


def test_a_photo_of_ones_own_is_taken(tmp_path: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Counting()
    monkeypatch.setattr("i2v.cli.local.load_engine", lambda *_: engine)
    photo.crop((0, 0, 70, 50)).save(tmp_path / "a.png")
    assert bench("--model", "fake", "-q", "--runs", "1", "--image", str(tmp_path / "a.png")) == 0
    assert [size for _, size in engine.given] == [(70, 50)] * 2
