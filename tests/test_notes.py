"""Every note has its sentence in both languages, is made with the values that it names, and outlives a row's JSON."""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from string import Formatter
from typing import Any

import pytest

from i2v.engine import trained_sizes
from i2v.engine.engine import keep_guidance, keep_steps, ran_out
from i2v.engine.fake import FakeEngine
from i2v.engine.memory import Plan, ladder, rungs
from i2v.engine.verdict import Verdict, labels
from i2v.images import place
from i2v.jobs.rows import _read_result
from i2v.notes import WORDS, Note, read, say
from i2v.presets import PRESETS, Sampling, described
from i2v.request import GenerateRequest
from tests.conftest import ROOT
from tests.jobs.test_job_store import RESULT

CHINESE = re.compile(r"[\u4e00-\u9fff]")
NAMES = "DDIM|DPM-Solver|UniPC|DeepCache|turbo|fast|exact|CUDA|VAE|UNet|GiB|GB"  # the same in every language
SOURCES = [path for path in (ROOT / "i2v").rglob("*.py") if path.name != "notes.py"]


def values_of(text: str) -> dict[str, str]:
    """The values that a sentence names, each with what stands after its colon."""
    return {name: spec or "" for _, name, spec, _ in Formatter().parse(text) if name}


def sample(spec: str) -> Any:
    """A value that a sentence can name: a number for a number's format, else a list for a joiner, else a word."""
    if re.fullmatch(r"(\.\d)?[fge]", spec):
        return 1.5
    return ("one", "two") if spec else "one"


@pytest.mark.parametrize("code", WORDS)
def test_every_code_is_said_in_both_languages_with_the_same_values(code: str) -> None:
    english, chinese = WORDS[code]
    assert values_of(english).keys() == values_of(chinese).keys()
    note = Note(code, {name: sample(spec) for name, spec in values_of(english).items()})
    in_english, in_chinese = say(note), say(note, "zh")
    assert not CHINESE.search(in_english)
    assert not re.search("[{}]", in_english + in_chinese)
    assert not re.search("[A-Za-z]{2}", re.sub(rf"\{{.*?\}}|{NAMES}", "", chinese)), "an English word is left"


def made() -> Iterator[tuple[str, str, list[str] | None]]:
    """(place, code, names of the values) of every `Note(...)` in the package; None where they are not written there."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Note":
                code, *rest = node.args
                names: list[str] | None = []
                if rest:
                    keys = rest[0].keys if isinstance(rest[0], ast.Dict) else [None]
                    known = [key.value for key in keys if isinstance(key, ast.Constant)]
                    names = [str(key) for key in known] if len(known) == len(keys) else None
                yield f"{path.relative_to(ROOT)}:{node.lineno}", ast.literal_eval(code), names


def test_every_note_of_the_package_has_a_sentence_that_names_its_values_and_no_sentence_is_left_over() -> None:
    """A code or a value with a slip of the pen would show itself only when somebody reads the result."""
    found = list(made())
    wrong = [(at, code) for at, code, names in found if names is None or values_of(WORDS[code][0]).keys() != set(names)]
    assert wrong == []
    assert {code for _, code, _ in found} == set(WORDS)


REAL = replace(FakeEngine().info, kind="real")
WORDY = replace(FakeEngine().info, kind="demo", vocabulary=("night falls", "static"), phrases=("night falls",))


def notes_of_the_engine() -> list[Note]:
    """One of each that numbers and a request decide."""
    far = GenerateRequest(prompt="a boat", width=1600, height=256, num_frames=8)
    small = far.model_copy(update={"width": 256, "num_frames": 16})
    turbo = PRESETS["turbo"].model_copy(update={"guidance_rescale": 0.7})
    return [
        *(place(size, (64, 64), fit).note() for size in ((64, 64), (640, 480), (128, 128)) for fit in ("crop", "pad")),
        *keep_guidance(12.0, (1.0, 9.0))[1],
        *keep_steps(40, 3)[1],
        *(plan.note() for plan in rungs(Plan())),
        *ran_out(1, Plan()),
        *ran_out(2, Plan()),
        *(label for info in (FakeEngine().info, REAL, WORDY) for label in labels(Verdict(None, True, True), far, info)),
        *trained_sizes.labels(far, REAL),
        *trained_sizes.notes(small, REAL),
        Note("preset", {"preset": "turbo", "parts": turbo.approximates(50)}),
        described("turbo", turbo),
        described("fast", Sampling(solver="unipc")),
        described("fast", Sampling(solver="ddim")),
    ]


@pytest.mark.parametrize("note", notes_of_the_engine(), ids=lambda note: str(note.code))
def test_a_note_keeps_its_numbers_in_chinese_and_all_of_itself_in_json(note: Note) -> None:
    english, chinese = say(note), say(note, "zh")
    own = re.compile('"[a-z ]+"')  # the model's own phrases
    assert own.findall(chinese) == own.findall(english)
    assert not re.search("[a-z]{2}", re.sub(NAMES, "", own.sub("", chinese)))
    assert set(re.findall(r"\d+", chinese)) == set(re.findall(r"\d+", english))
    kept = read(json.loads(json.dumps(asdict(note), allow_nan=False)))
    assert (say(kept), say(kept, "zh")) == (english, chinese)


def test_the_sentences_of_the_engine_are_those_that_clients_know() -> None:
    small = GenerateRequest(prompt="a boat", width=256, height=256, num_frames=16)
    drifted = Verdict(drifted=True, still=True)
    assert [say(label) for label in labels(drifted, small, REAL)] == [
        "The colours end far from the photo's. If that is not meant, try another seed, a lower guidance scale, "
        "or a size nearer to 1280x704 with 16 frames.",
        "Hardly anything moves in this video. Try another seed, a lower motion_fps, a higher guidance scale, "
        "or a size nearer to 1280x704 with 16 frames.",
    ]
    assert [say(label) for label in labels(drifted, small, WORDY)] == [
        "The colours end far from the photo's. If that is not meant, try another seed, a lower guidance scale.",
        'Hardly anything changes in this video. This model follows "night falls", "static".',
        'The prompt has no phrase that this model follows: "night falls", "static", or other words for these.',
    ]
    far = small.model_copy(update={"width": 1280, "num_frames": 8})
    assert [say(label) for label in trained_sizes.labels(far, REAL)] == [
        "1280x256 with 8 frames is far from the shape and number of frames the model was trained with "
        "(1280x704, 16 frames), so expect defects; nearer is better."
    ]
    assert [say(note) for note in trained_sizes.notes(small, REAL)] == [
        "The model was trained at 1280x704; smaller videos show less detail and often less motion."
    ]
    assert say(Plan().note()) == "all resident, one guidance pass, feed-forward in 1, 4 frames decoded at once"
    lower = ladder(ladder(Plan()) or Plan())
    assert lower is not None
    assert say(*ran_out(2, lower)) == (
        "Ran out of memory 2 times; this part was done again with all resident, one guidance pass, "
        "feed-forward in 4, 1 frames decoded at once."
    )


def test_text_and_codes_of_another_version_are_shown_as_they_are() -> None:
    for kept in ("The photo has the size of the video (64x64).", "Something new.", ""):
        assert read(kept) == kept
        assert say(read(kept), "zh") == kept
    assert read({"code": "of_tomorrow", "values": {"n": 1}}) == "of_tomorrow"


def test_a_row_of_an_older_version_shows_its_sentences() -> None:
    kept = asdict(replace(RESULT, plan="all resident", notes=("An old note.",), warnings=("An old warning.",)))
    del kept["model_kind"]
    result = _read_result({"result": json.dumps(kept)})
    assert (result.plan, result.notes, result.warnings) == ("all resident", ("An old note.",), ("An old warning.",))
    assert _read_result({"result": json.dumps(kept | {"plan": ""})}).plan is None
    noted = replace(RESULT, plan=Plan().note(), notes=keep_guidance(12.0, (1.0, 9.0))[1])
    assert _read_result({"result": json.dumps(asdict(noted))}) == noted
