"""Loading is strict: the right tensors under the published names arrive whole, and anything else is a clear error."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from i2v.engine import source, weights
from i2v.engine.unet.model import I2VGenXLUNet
from i2v.errors import ModelUnavailable
from i2v.notes import Note, say
from tests.engine import full_size

CPU = torch.device("cpu")
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
KEY = "conv_in.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A writable copy of the demo model."""
    shutil.copytree(source.DEMO_FOLDER, tmp_path / "model")
    return tmp_path / "model"


def load(folder: Path, dtype: torch.dtype = torch.float32) -> weights.ModelParts:
    return weights.load_parts(source.open_folder(folder), CPU, dtype)


def edit(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# --- what arrives


def test_every_tensor_of_the_demo_model_arrives_with_the_files_values() -> None:
    parts = load(source.DEMO_FOLDER)

    for part, stem in weights.STEMS.items():
        module = getattr(parts, part)
        stored = load_file(source.DEMO_FOLDER / part / f"{stem}.safetensors")
        loaded = {name.removeprefix("text_model."): tensor for name, tensor in module.state_dict().items()}
        assert len(loaded) == len(stored)
        for name, tensor in stored.items():
            torch.testing.assert_close(loaded[name.removeprefix("text_model.")], tensor.float(), rtol=0, atol=0)
        assert not module.training
        everything = [*module.parameters(), *module.buffers()]
        assert not any(tensor.is_meta or tensor.requires_grad for tensor in everything)


def test_the_demo_model_says_what_it_is() -> None:
    info = load(source.DEMO_FOLDER).info

    assert (info.name, info.kind, info.device, info.dtype) == ("demo", "demo", "cpu", "float32")
    assert info.guidance_range == (1.0, 7.5)
    assert "night falls" in info.vocabulary
    assert "camera pans left" in info.vocabulary
    assert "camera zooms in" in info.vocabulary
    assert "demo" in info.title.lower()
    assert info.note


def test_tokens_are_the_same_in_both_generations_of_the_library() -> None:
    """Recorded with transformers 4.57; version 5 reads the same two files with another tokenizer."""
    tokenizer = load(source.DEMO_FOLDER).tokenizer
    padding = {"padding": "max_length", "max_length": 12}

    assert tokenizer("The scene at sunset", **padding).input_ids == [2046, 513, 708, 709, 714, *[2047] * 7]
    assert tokenizer("a cat; night falls", **padding).input_ids == [2046, 320, 928, 282, 710, 1054, *[2047] * 6]


def test_the_position_numbers_that_no_file_holds_are_filled_in() -> None:
    parts = load(source.DEMO_FOLDER)

    assert parts.text_encoder.embeddings.position_ids.tolist() == [list(range(77))]
    assert parts.image_encoder.vision_model.embeddings.position_ids.tolist() == [list(range(50))]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parts_come_in_the_dtype_asked_for(dtype: torch.dtype) -> None:
    parts = load(source.DEMO_FOLDER, dtype)

    for part in weights.STEMS:
        assert {p.dtype for p in getattr(parts, part).parameters()} == {dtype}


def test_progress_rises_to_one_and_names_each_part() -> None:
    said: list[tuple[str, float]] = []

    def report(what: Note, done: float | None) -> None:
        said.append((say(what), done or 0.0))

    weights.load_parts(source.open_folder(source.DEMO_FOLDER), CPU, torch.float32, report)

    fractions = [fraction for _, fraction in said]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert {what for what, _ in said} == {
        "loading text encoder",
        "loading image encoder",
        "loading vae",
        "loading unet",
    }


def test_a_file_changed_on_disk_after_loading_changes_nothing(folder: Path) -> None:
    """Tensors that stay views of a mapped file change under a running model, or kill it when the file is cut."""
    parts = load(folder, torch.float16)  # the dtype of the file, so that nothing but the copy separates them
    before = parts.vae.state_dict()["encoder.conv_in.weight"].clone()

    with (folder / VAE).open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 2_000_000)

    assert torch.equal(parts.vae.state_dict()["encoder.conv_in.weight"], before)


# --- other writers of the same model


def test_half_precision_takes_the_fp16_file_and_full_precision_the_full_one(folder: Path) -> None:
    half = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    shutil.copy(folder / UNET, half)
    edit(half, lambda tensors: tensors[KEY].fill_(0.5))

    assert source.open_folder(folder).variant == "fp16"
    assert load(folder, torch.float16).unet.state_dict()[KEY].unique().tolist() == [0.5]
    assert len(load(folder).unet.state_dict()[KEY].unique()) > 1


def test_a_part_in_shards_is_read_by_its_index_and_a_missing_shard_named(folder: Path) -> None:
    whole = load_file(folder / UNET)
    names = sorted(whole)
    shards = {"a.safetensors": names[:100], "b.safetensors": names[100:]}
    for file, held in shards.items():
        save_file({name: whole[name] for name in held}, folder / "unet" / file)
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (folder / UNET).unlink()

    assert torch.equal(load(folder).unet.state_dict()[KEY], whole[KEY].float())

    (folder / "unet" / "b.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match=r"names b\.safetensors, which is not there"):
        load(folder)


def test_text_encoders_saved_by_both_generations_of_transformers_load_alike(folder: Path) -> None:
    before = load(folder).text_encoder.state_dict()

    def to_new_names(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("text_model.")] = tensors.pop(name)

    edit(folder / TEXT, to_new_names)
    after = load(folder).text_encoder.state_dict()

    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_constant_that_old_text_encoders_carry_is_passed_over(folder: Path) -> None:
    edit(folder / TEXT, lambda t: t.update({"text_model.embeddings.position_ids": torch.arange(77)[None]}))

    assert load(folder).text_encoder.embeddings.position_ids.shape == (1, 77)


def test_the_attention_of_a_vae_saved_by_an_old_diffusers_loads(tmp_path: Path, folder: Path) -> None:
    config = json.loads((folder / "vae" / "config.json").read_text()) | {"mid_block_add_attention": True}
    edit_json(folder / "vae" / "config.json", **config)
    stored = AutoencoderKL.from_config(config).state_dict()
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    renamed = {}
    for name, tensor in stored.items():
        for new, was in old.items():
            name = name.replace(new, was)
        renamed[name] = tensor
    save_file(renamed, folder / VAE)

    loaded = load(folder).vae.state_dict()

    assert set(renamed) != set(stored)
    assert all(torch.equal(loaded[name], stored[name]) for name in stored)


# --- what is refused


def test_a_missing_tensor_is_named_with_its_folder(folder: Path) -> None:
    edit(folder / UNET, lambda tensors: tensors.pop(KEY))
    with pytest.raises(ModelUnavailable, match=r"unet: .*1 missing \(conv_in\.weight\)"):
        load(folder)


def test_an_unexpected_tensor_is_named(folder: Path) -> None:
    edit(folder / VAE, lambda tensors: tensors.update({"decoder.extra": torch.zeros(3)}))
    with pytest.raises(ModelUnavailable, match=r"vae: .*1 unexpected \(decoder\.extra\)"):
        load(folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder: Path) -> None:
    edit(folder / UNET, lambda tensors: tensors.update({KEY: torch.zeros(3, 3)}))
    with pytest.raises(ModelUnavailable, match=r"conv_in\.weight has shape \(3, 3\); the config wants \(24, 8, 3, 3\)"):
        load(folder)


@pytest.mark.parametrize("kept", [0, 5, 1000, 1_000_000])
def test_a_file_cut_short_is_named(folder: Path, kept: int) -> None:
    with (folder / UNET).open("r+b") as file:
        file.truncate(kept)

    for attempt in (load, lambda where: weights.check_files(source.open_folder(where))):
        with pytest.raises(ModelUnavailable, match=r"diffusion_pytorch_model\.safetensors is not a whole safetensors"):
            attempt(folder)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.ckpt", "weights.pth"])
def test_a_folder_of_pickles_is_refused_and_they_are_not_opened(folder: Path, name: str) -> None:
    (folder / UNET).unlink()
    (folder / "unet" / name).write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")

    with pytest.raises(ModelUnavailable, match=rf"only pickled weights \({name}\)"):
        load(folder)


def test_a_load_leaves_the_global_random_state_alone(folder: Path) -> None:
    torch.manual_seed(5)
    load(folder)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / TEXT).unlink()
    with pytest.raises(ModelUnavailable, match=r"text_encoder/model\.safetensors is missing"):
        load(folder)


def test_a_key_that_only_a_newer_writer_knows_stops_no_part(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The UNet's was refused. transformers keeps such a key, diffusers logs it and goes on."""
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    for part in weights.STEMS:
        edit_json(folder / part / "config.json", colour="red")

    load(folder)

    naming = {record.name for record in caplog.records if "colour" in record.getMessage()}
    assert naming == {"diffusers.configuration_utils", "i2v.engine.unet.blocks"}


@pytest.mark.parametrize(
    ("part", "change", "wanted"),
    [
        ("text_encoder", {"hidden_size": "wide"}, "hidden_size"),
        ("image_encoder", {"num_attention_heads": 7}, "multiple of the number of attention heads"),
        ("vae", {"norm_num_groups": "many"}, "str"),
        ("unet", {"norm_num_groups": "many"}, "norm_num_groups is 'many'"),
    ],
)
def test_a_wrong_value_of_a_known_key_is_refused_in_every_part(
    folder: Path, part: str, change: dict[str, object], wanted: str
) -> None:
    """transformers' own error for a wrong type came through as it was."""
    edit_json(folder / part / "config.json", **change)
    with pytest.raises(ModelUnavailable, match=rf"(?s){part}/config\.json describes no such model: .*{wanted}"):
        load(folder)


@pytest.mark.parametrize(
    ("file", "text", "wanted"),
    [
        ("unet/config.json", "{", "not valid JSON"),
        ("unet/config.json", "[]", "holds a list"),
        ("unet/config.json", '{"block_out_channels": "wide"}', "describes no such model"),
        ("text_encoder/config.json", '{"model_type": "bert"}', "'bert', not clip_text_model"),
        ("model_index.json", '{"_class_name": "StableDiffusionPipeline"}', "'StableDiffusionPipeline'"),
        ("scheduler/scheduler_config.json", "{", "cannot be read as DDIMScheduler"),
        ("tokenizer/vocab.json", "{", "cannot be read as CLIPTokenizer"),
    ],
)
def test_a_broken_small_file_is_named(folder: Path, file: str, text: str, wanted: str) -> None:
    (folder / file).write_text(text)
    with pytest.raises(ModelUnavailable, match=wanted) as told:
        load(folder)
    assert file.split("/")[0] in str(told.value)


@pytest.mark.parametrize(
    ("card", "wanted"),
    [
        ({"colour": "red"}, r"unknown entries \['colour'\]"),
        ({"kind": "toy"}, "kind is 'toy'"),
        ({"guidance_range": [2.0, 1.0]}, "guidance_range"),
        ({"guidance_range": "wide"}, "guidance_range"),
        ({"max_steps": 0}, "max_steps is 0; it must be a whole number from 1"),
        ({"max_steps": True}, "max_steps is True"),
        ({"max_steps": "few"}, "max_steps is 'few'"),
        ({"dtype": "float16"}, "dtype is 'float16'; it must be float32, or left out"),
    ],
)
def test_a_card_with_a_mistake_is_refused_by_name(folder: Path, card: dict[str, object], wanted: str) -> None:
    (folder / "i2v.json").write_text(json.dumps(card))
    with pytest.raises(ModelUnavailable, match=wanted):
        source.open_folder(folder)


def test_a_folder_without_a_card_is_a_real_model_of_its_own_name(folder: Path) -> None:
    (folder / "i2v.json").unlink()
    info = load(folder).info

    assert (info.name, info.kind, info.vocabulary, info.guidance_range) == ("model", "real", (), None)


# --- source, device, dtype


@pytest.mark.parametrize("name", ["nonsense", "/no/such/folder", "a/b/c", "../x"])
def test_a_source_that_is_nothing_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # whatever lies beside the checkout
    with pytest.raises(ModelUnavailable, match="neither auto, demo, an existing folder nor a hub id"):
        source.resolve(name)


def test_a_device_this_machine_has_not_is_refused() -> None:
    for device in ("gpu", "mps", "cuda:99"):
        with pytest.raises(ModelUnavailable, match=f"'{device}'"):
            source.choose_device(device)


def test_the_cpu_gets_float32_and_a_gpu_float16() -> None:
    assert source.choose_dtype("auto", CPU) is torch.float32
    assert source.choose_dtype("auto", torch.device("cuda", 0)) is torch.float16
    assert source.choose_dtype("bfloat16", CPU) is torch.bfloat16
    only = source.ModelCard(dtype="float32")
    assert source.choose_dtype("auto", torch.device("cuda", 0), only) is torch.float32
    with pytest.raises(ModelUnavailable, match="dtype 'float16' was asked for; this model works in float32 alone"):
        source.choose_dtype("float16", torch.device("cuda", 0), only)
    with pytest.raises(ModelUnavailable, match="'int8'"):
        source.choose_dtype("int8", CPU)


# --- the published sizes


def test_the_published_configs_give_the_published_parameter_counts() -> None:
    with torch.device("meta"):
        built = {
            "unet": I2VGenXLUNet.from_config(full_size.UNET),
            "vae": AutoencoderKL.from_config(full_size.VAE),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**full_size.TEXT)),
            "image_encoder": CLIPVisionModelWithProjection(CLIPVisionConfig(**full_size.VISION)),
        }
    counts = {part: sum(p.numel() for p in module.parameters()) for part, module in built.items()}

    assert counts == full_size.PARAMETERS


def test_the_shipped_files_are_safetensors_and_hold_no_path_of_a_machine() -> None:
    for file in source.DEMO_FOLDER.rglob("*"):
        assert file.is_dir() or file.suffix in (".json", ".txt", ".safetensors")
        if file.suffix == ".json":
            assert "_name_or_path" not in file.read_text()
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                assert set(opened.metadata() or {}) <= {"format"}
    assert sum(file.stat().st_size for file in source.DEMO_FOLDER.rglob("*")) < 25e6
