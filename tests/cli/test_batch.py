"""Tables of jobs: checked whole before the first job, resumed where they stopped."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from i2v import video
from i2v.cli import commands
from i2v.cli.batch import read_rows
from i2v.errors import InvalidRequest
from i2v.request import GenerateRequest
from tests.conftest import ASSETS

PHOTO = ASSETS / "coffee.jpg"
Run = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def run(words: str) -> tuple[int, str, str]:
        try:
            commands.main(["batch", *words.split(), "--model", "fake"])
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, *capsys.readouterr()

    return run


def check(asked: dict[str, Any]) -> GenerateRequest:
    try:
        return GenerateRequest.model_validate(asked)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None


def row(**more: object) -> dict[str, object]:
    return {"image": str(PHOTO), "prompt": "x", "width": 64, "height": 64, "num_frames": 2, "steps": 2} | more


def write_lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_csv_and_json_lines_mean_the_same(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "image,prompt,out,steps,guidance_scale,seed,negative_prompt\n"
        'a.jpg,"the sun, sets",one.mp4,20,7.5,3,\n'
        "b.jpg,日落,,,,,dark\n",
        encoding="utf-8-sig",
    )
    lines: list[dict[str, object]] = [
        {"image": "a.jpg", "prompt": "the sun, sets", "out": "one.mp4", "steps": 20, "guidance_scale": 7.5, "seed": 3},
        {"image": "b.jpg", "prompt": "日落", "out": "0003.mp4", "negative_prompt": "dark"},
    ]
    one = read_rows(tmp_path / "t.csv", tmp_path / "out", check)
    two = read_rows(write_lines(tmp_path / "t.jsonl", lines), tmp_path / "out", check)
    assert [(r.image, r.out, r.request) for r in one] == [(r.image, r.out, r.request) for r in two]
    assert one[0].image == tmp_path / "a.jpg"
    assert one[0].out == tmp_path / "out" / "one.mp4"
    assert one[1].request.negative_prompt == "dark"


def test_a_size_may_be_written_as_everywhere_else(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,prompt,size\na.jpg,x,256x128\nb.jpg,y,\n")
    first, second = read_rows(tmp_path / "t.csv", tmp_path, check)
    assert (first.request.width, first.request.height) == (256, 128)
    assert (second.request.width, second.request.height) == (512, 512)
    assert first.asked == {"prompt": "x", "width": 256, "height": 128}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("t.csv", "image,prompt\na.jpg,x\nb.jpg,\n", "line 3: prompt is missing"),
        ("t.csv", "image,prompt,steps\na.jpg,x,many\n", "line 2: .*steps"),
        ("t.csv", "image,prompt,colour\na.jpg,x,red\n", "line 2: .*colour"),
        ("t.csv", "image,prompt\na.jpg,x,y\n", "line 2 has more values"),
        ("t.csv", "prompt\nx\n", "line 2: image"),
        ("t.csv", "image,prompt,out\na.jpg,x,v.mp4\nb.jpg,y,v.mp4\n", "two rows write .*v.mp4"),
        ("t.csv", "image,prompt,size\na.jpg,x,big\n", "line 2: size must be WIDTHxHEIGHT"),
        ("t.csv", "image,prompt,size\na.jpg,x,0x0\n", "line 2: size must be WIDTHxHEIGHT"),
        ("t.csv", f"image,prompt,size\na.jpg,x,512x{'1' * 5000}\n", "line 2: size must be WIDTHxHEIGHT"),
        ("t.csv", "image,prompt,size,width,height\na.jpg,x,64x64,64,64\n", "line 2: .*not both"),
        ("t.jsonl", '{"image": "a.jpg", "prompt": "x", "size": 512}\n', "line 1: size must be WIDTHxHEIGHT"),
        ("t.jsonl", '{"image": "a.jpg", "prompt": "x"}\nnonsense\n', "line 2 is not a JSON object"),
        ("t.jsonl", "[1]\n", "line 1 is not a JSON object"),
        ("t.jsonl", '{"image": 3, "prompt": "x"}\n', "line 1: image"),
        ("t.jsonl", '{"image": "a.jpg", "prompt": "x", "steps": "20"}\n', "line 1: .*steps"),
    ],
)
def test_a_bad_row_is_named_before_anything_runs(name: str, text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidRequest, match=says.replace(": .*", r": (?s:.*)")):
        read_rows(tmp_path / name, tmp_path, check)


def test_a_batch_makes_every_video_and_a_second_run_makes_none(run: Run, tmp_path: Path) -> None:
    write_lines(tmp_path / "t.jsonl", [row(seed=1), row(seed=2, out="named.mp4")])
    code, out, _ = run("t.jsonl -o made")
    assert (code, out.split()) == (0, ["made/0001.mp4", "made/named.mp4"])
    assert sorted(os.listdir(tmp_path / "made")) == ["0001.mp4", "named.mp4"]
    assert json.loads(video.read_metadata(tmp_path / "made" / "named.mp4")["request"])["seed"] == 2
    before = [(tmp_path / "made" / name).stat().st_mtime_ns for name in ("0001.mp4", "named.mp4")]
    code, out, err = run("t.jsonl -o made")
    assert (code, out) == (0, "")
    assert "2 of them done already" in err
    assert before == [(tmp_path / "made" / name).stat().st_mtime_ns for name in ("0001.mp4", "named.mp4")]


def test_a_row_that_fails_does_not_stop_the_others_and_runs_again_later(run: Run, tmp_path: Path) -> None:
    write_lines(tmp_path / "t.jsonl", [row(image="later.jpg"), row()])
    code, out, err = run("t.jsonl -o made -q")
    assert (code, out) == (1, "made/0002.mp4\n")
    assert "[ERROR] line 1: the photo later.jpg cannot be read" in err
    assert "1 of 2 rows failed" in err
    (tmp_path / "later.jpg").write_bytes(PHOTO.read_bytes())
    assert run("t.jsonl -o made -q")[:2] == (0, "made/0001.mp4\n")


def test_a_bad_table_runs_nothing(run: Run, tmp_path: Path) -> None:
    write_lines(tmp_path / "t.jsonl", [row(), row(steps=0)])
    code, _, err = run("t.jsonl -o made")
    assert code == 2
    assert "line 2: steps" in err
    assert not (tmp_path / "made").exists()
