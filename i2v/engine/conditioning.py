"""Everything the model is told besides the noise, computed once a request: prompt, picture, position masks, motion fps.

Called by `engine.generate`; knows nothing of sampling. Formulas follow the published I2VGen-XL code; `Conventions` says
where its two implementations part.
"""

from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from i2v.engine.conventions import Conventions
from i2v.images import fit_image
from i2v.notes import Note
from i2v.request import GenerateRequest

PROMPT, NEGATIVE = Note("the_prompt"), Note("the_negative_prompt")
Using = Callable[[Any], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Constant over all steps. B is 2 with guidance (negative first, then the prompt's), else 1.

    `text` (B, 77, D) and `image_embedding` (B, 1, P) in the encoders' dtype; `image_latents` (1, 4, F, h, w) fp32: the
    picture's latents, then one position mask a frame; `motion_fps` an int; `notes` what the caller should know.
    """

    text: Tensor
    image_embedding: Tensor
    image_latents: Tensor
    motion_fps: int
    guidance_scale: float
    image_concat_scale: float = 1.0  # see `Conventions`
    notes: tuple[Note, ...] = ()

    @property
    def guided(self) -> bool:
        return self.text.shape[0] == 2


@dataclass(frozen=True, slots=True)
class FittedPhoto:
    """A photo as the model takes it, RGB: `picture` at the video's size, `square` for CLIP (side = width, as trained).

    `notes` say how it was cropped or padded.
    """

    picture: Image.Image
    square: Image.Image
    notes: tuple[Note, ...] = ()


@dataclass(slots=True)
class TextCache:
    """The last few prompts' embeddings, by their tokens: the negative prompt is nearly always the same one.

    The tokens hold all that decides an embedding (text, padding, cut). 16 of the published model's take 2.5 MB.
    """

    most: int = 16
    kept: OrderedDict[tuple[Any, ...], Tensor] = field(default_factory=OrderedDict)

    def find(self, key: tuple[Any, ...], encode: Callable[[], Tensor]) -> Tensor:
        if key not in self.kept:
            self.kept[key] = encode()
        self.kept.move_to_end(key)
        while len(self.kept) > self.most:
            self.kept.popitem(last=False)
        return self.kept[key]


def encode(
    parts: Any,
    request: GenerateRequest,
    photo: FittedPhoto,
    generator: torch.Generator,
    conventions: Conventions,
    device: torch.device,
    using: Using = nullcontext,
    texts: TextCache | None = None,
) -> Conditioning:
    """Encode one request. `parts` are the loaded model's; `generator` (CPU) draws the VAE's posterior sample.

    `using(module)` is held around each encoder's work: where weights are offloaded, it brings them. Prompts that
    `texts` knows are not encoded again, and the text encoder is not brought for them.
    """
    texts = TextCache() if texts is None else texts
    guided = request.guidance_scale > 1.0
    negative = conventions.negative_prompt if request.negative_prompt is None else request.negative_prompt
    text, notes = encode_text(parts, request.prompt, conventions, device, PROMPT, using, texts)  # (1, 77, D)
    if guided:
        negative_text, cut = encode_text(parts, negative, conventions, device, NEGATIVE, using, texts)
        text, notes = torch.cat([negative_text, text]), notes + cut
    with using(parts.image_encoder):
        embedding = embed_picture(parts, photo.square, device)  # (1, 1, P)
        if guided:
            embedding = torch.cat([torch.zeros_like(embedding), embedding])
    with using(parts.vae):
        latents = encode_picture(parts.vae, photo.picture, generator, conventions, device)  # (1, 4, h, w)
    return Conditioning(
        text=text,
        image_embedding=embedding,
        image_latents=with_position_masks(latents, request.num_frames),
        motion_fps=request.motion_fps,
        guidance_scale=request.guidance_scale,
        image_concat_scale=conventions.image_concat_scale,
        notes=photo.notes + notes,
    )


def encode_text(
    parts: Any,
    prompt: str,
    conventions: Conventions,
    device: torch.device,
    what: Note,
    using: Using = nullcontext,
    texts: TextCache | None = None,
) -> tuple[Tensor, tuple[Note, ...]]:
    """Text to the penultimate layer's output through the final layer norm, (1, 77, D), and a note when it was cut.

    The encoder's last layer is unused: the model was trained on open_clip's penultimate layer.
    """
    ids, notes = tokens_of(parts.tokenizer, prompt, conventions, what)
    encoder = parts.text_encoder

    def run() -> Tensor:
        with using(encoder):
            hidden = encoder(torch.tensor([ids], device=device), output_hidden_states=True).hidden_states[-2]
            # transformers 5 took one level out of CLIPTextModel; both names are the same layer
            outer = encoder if hasattr(encoder, "final_layer_norm") else encoder.text_model
            normed: Tensor = outer.final_layer_norm(hidden)
        return normed

    return (run() if texts is None else texts.find((*ids, encoder.dtype, str(device)), run)), notes


def tokens_of(tokenizer: Any, prompt: str, conventions: Conventions, what: Note) -> tuple[list[int], tuple[Note, ...]]:
    """The prompt's tokens, cut and padded to the model's 77, and a note when it was cut."""
    length = tokenizer.model_max_length
    ids = list(tokenizer(prompt, truncation=False, verbose=False).input_ids)
    notes: tuple[Note, ...] = ()
    if len(ids) > length:
        cut = len(ids) - length
        notes = (Note("prompt_cut", {"what": what, "tokens": len(ids), "read": length, "cut": cut}),)
        ids = ids[: length - 1] + ids[-1:]  # the end-of-text token stays
    padding = tokenizer.pad_token_id if conventions.pad_token_id is None else conventions.pad_token_id
    return ids + [padding] * (length - len(ids)), notes


def embed_picture(parts: Any, picture: Image.Image, device: torch.device) -> Tensor:
    """A square picture to the CLIP image embedding, (1, 1, P)."""
    extractor = parts.feature_extractor
    size = _crop_size(extractor)
    pixels = to_tensor(picture.resize((size, size), Image.Resampling.BILINEAR))  # (1, 3, 224, 224)
    mean, std = (torch.tensor(list(x))[None, :, None, None] for x in (extractor.image_mean, extractor.image_std))
    encoder = parts.image_encoder
    embedding: Tensor = encoder(((pixels - mean) / std).to(device, encoder.dtype)).image_embeds
    return embedding[:, None]


def to_tensor(picture: Image.Image) -> Tensor:
    """RGB picture to (1, 3, H, W) fp32 in 0..1."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255.0).permute(2, 0, 1)[None]


def encode_picture(
    vae: Any, picture: Image.Image, generator: torch.Generator, conventions: Conventions, device: torch.device
) -> Tensor:
    """A picture to one posterior sample of scaled latents, (1, 4, h, w) fp32.

    The sample is drawn in fp32 on the CPU from `generator`, so a seed means the same on any device and dtype.
    """
    pixels = (to_tensor(picture) * 2 - 1).to(device, vae.dtype, memory_format=torch.channels_last)
    posterior = vae.encode(pixels).latent_dist
    if conventions.vae_sample == "upstream":
        sample: Tensor = posterior.sample()  # the global random state
    else:
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
        sample = posterior.mean.float() + posterior.std.float() * noise
    return sample.float().contiguous() * latent_scale(vae, conventions)


def latent_scale(vae: Any, conventions: Conventions) -> float:
    return float(vae.config.scaling_factor if conventions.latent_scale is None else conventions.latent_scale)


def with_position_masks(latents: Tensor, num_frames: int) -> Tensor:
    """(1, 4, h, w) to (1, 4, F, h, w): the latents as frame 0, then frame f filled with f / (F - 1)."""
    frames = [latents]
    for frame in range(1, num_frames):
        frames.append(torch.full_like(latents, frame / (num_frames - 1)))
    return torch.stack(frames, dim=2)


def fit_photo(image: Image.Image, request: GenerateRequest, conventions: Conventions) -> FittedPhoto:
    """The photo in the sizes that the model takes; a square video's picture serves CLIP too."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    width, height, fit = request.width, request.height, request.fit
    if conventions.crop == "upstream" and fit == "crop":
        return FittedPhoto(upstream_crop(rgb, width, height), upstream_crop(rgb, width, width))
    picture, placement = fit_image(rgb, width, height, fit)
    square = picture if width == height else fit_image(rgb, width, width, fit)[0]
    return FittedPhoto(picture, square, (placement.note(),))


def upstream_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """diffusers' `_center_crop_wide`, floor division included: in 33 to 45% of sizes it leaves a black row or column.

    Kept for parity tests alone; `fit_image` is the crop of the product.
    """
    scale = min(image.width / width, image.height / height)
    image = image.resize((round(image.width // scale), round(image.height // scale)), Image.Resampling.BOX)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _crop_size(extractor: Any) -> int:
    size = extractor.crop_size
    return int(size["height"] if hasattr(size, "__getitem__") else size)
