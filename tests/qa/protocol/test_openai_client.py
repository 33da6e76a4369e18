"""The `openai` package as it comes from the registry, pointed at this server and nothing else."""

import io
import warnings

import openai
import pytest
from PIL import Image

from i2v.video import probe
from tests.conftest import ASSETS

warnings.filterwarnings("ignore", category=DeprecationWarning, module="openai")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PHOTO = ASSETS / "coffee.jpg"
FAST = {"size": "256x256", "seconds": "1", "extra_body": {"steps": 10}}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def videos(client):
    return client.videos


@pytest.fixture(scope="module")
def video(videos):
    with PHOTO.open("rb") as photo:
        return videos.create_and_poll(prompt="the scene at sunset", input_reference=photo, **FAST)


def test_create_and_poll_makes_a_video(video):
    assert video.status == "completed"
    assert (video.object, video.progress, video.size, video.seconds) == ("video", 100, "256x256", "1")
    assert video.error is None


@pytest.mark.parametrize("seconds", ["4", "8"])
def test_the_lengths_the_client_knows_are_made(videos, seconds):
    made = videos.create(prompt="x", input_reference=PHOTO, size="256x256", seconds=seconds, extra_body={"steps": 10})
    assert videos.poll(made.id, poll_interval_ms=50).seconds == seconds


@pytest.mark.parametrize("size", ["720x1280", "1280x720"])
def test_the_sizes_the_client_knows_are_taken(videos, size):
    made = videos.create(prompt="x", input_reference=PHOTO, size=size, seconds="1", extra_body={"steps": 10})
    assert made.size == size
    videos.delete(made.id)


def test_it_is_retrieved_as_it_was_returned(videos, video):
    assert videos.retrieve(video.id) == video


def test_every_variant_is_downloaded(videos, video, tmp_path):
    file = tmp_path / "video.mp4"
    videos.download_content(video.id).write_to_file(file)
    assert (probe(file).frames, probe(file).width) == (8, 256)
    for variant in ("thumbnail", "spritesheet", "gif", "webp"):
        with Image.open(io.BytesIO(videos.download_content(video.id, variant=variant).read())) as picture:
            assert min(picture.size) >= 256


def test_listing_walks_over_pages(videos, video):
    made = [videos.create(prompt=f"number {n}", input_reference=PHOTO, **FAST).id for n in range(3)]
    for id in made:
        videos.poll(id, poll_interval_ms=50)
    assert [found.id for found in videos.list(limit=2)][:3] == made[::-1]
    assert [found.id for found in videos.list(limit=2, order="asc")][-3:] == made


def test_a_remix_is_a_new_video(videos, video):
    remix = videos.poll(videos.remix(video.id, prompt="night falls").id, poll_interval_ms=50)
    assert (remix.status, remix.prompt) == ("completed", "night falls")
    assert remix.id != video.id


def test_an_extension_is_the_stitched_clip(videos, video, tmp_path):
    content = io.BytesIO(videos.download_content(video.id).read())
    made = videos.poll(videos.extend(prompt="more", seconds="4", video=content).id, poll_interval_ms=50)
    assert made.status == "completed"
    assert made.seconds == "4.875"
    file = tmp_path / "video.mp4"
    videos.download_content(made.id).write_to_file(file)
    assert probe(file).frames == 8 + 32 - 1


def test_a_deleted_video_is_gone(videos):
    made = videos.create_and_poll(prompt="x", input_reference=PHOTO, **FAST)
    assert videos.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        videos.retrieve(made.id)


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["fake"]


REFUSALS = [
    ({"prompt": ""}, "prompt", "prompt is empty"),
    ({"prompt": "x", "seconds": "12"}, "seconds", "8 to 32"),
    ({"prompt": "x", "size": "1024x1792"}, "size", "1792"),
    ({"prompt": "x", "input_reference": b"junk"}, "input_reference", "image"),
    ({"prompt": "x", "model": "sora-2"}, "model", "fake"),
]


@pytest.mark.parametrize(("arguments", "field", "words"), REFUSALS, ids=lambda value: str(value)[:40])
def test_its_exceptions_carry_our_message(videos, arguments, field, words):
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        videos.create(**{"input_reference": PHOTO, **arguments})
    assert words in caught.value.message
    assert caught.value.param == field
    assert caught.value.request_id


def test_a_wrong_token_is_its_authentication_error(start_server):
    guarded = start_server("--no-ui", I2V_API_TOKEN="a-long-enough-secret")
    wrong = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0)
    with wrong, pytest.raises(openai.AuthenticationError):
        wrong.videos.list()
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="a-long-enough-secret") as client:
        assert client.videos.list().data == []
