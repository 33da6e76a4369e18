"""The choices in which the model's authors and the upstream pipeline differ, as one frozen object with two named sets.

`conditioning`, `sampler` and `decode` read it; nothing here touches a tensor. What is a mistake on either side (centre
crop one pixel short, VAE sample from the global random state, latents and noise in half precision, one step too many,
one number for two frame rates) is corrected in both sets; only `for_parity` brings the first two back.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

AUTHORS_NEGATIVE_PROMPT = (
    "Distorted, discontinuous, Ugly, blurry, low resolution, motionless, static, disfigured, disconnected limbs, "
    "Ugly faces, incomplete arms"
)


@dataclass(frozen=True, slots=True)
class Conventions:
    """How a request reaches the model.

    `image_concat_scale` multiplies the image branch where it enters conv_in. The authors add that branch twice and
    trained the model so; diffusers adds it once. 1.0 in both sets: right for every folder trained with diffusers, and
    for the published one if its conv_in was doubled, which is not known (`i2v doctor --calibrate` compares frame 0 with
    a photo at 1.0 and 2.0). `negative_prompt` is used when the request has none. `pad_token_id` fills a prompt to 77
    tokens; None is the tokenizer's own. `latent_scale` multiplies encoded latents; None is the VAE's own
    scaling_factor (0.18125 in the published folder, 0.18215 in the authors' code: 0.5% apart, and the file's number is
    the one its users have run). `crop` and `vae_sample` are `mended`, or `upstream` in a parity test.
    """

    name: str
    negative_prompt: str
    pad_token_id: int | None
    image_concat_scale: float = 1.0
    latent_scale: float | None = None
    crop: Literal["mended", "upstream"] = "mended"
    vae_sample: Literal["mended", "upstream"] = "mended"


UPSTREAM = Conventions("upstream", negative_prompt="", pad_token_id=None)
# the authors tokenize with open_clip, which pads with 0
AUTHORS = Conventions("authors", negative_prompt=AUTHORS_NEGATIVE_PROMPT, pad_token_id=0)

_NAMED = {"upstream": UPSTREAM, "authors": AUTHORS}
_OF_A_MODEL = {field.name for field in fields(Conventions)} - {"name", "crop", "vae_sample"}


def named(conventions: str | Conventions) -> Conventions:
    """The set of that name, or the object itself. Raises ValueError for an unknown name."""
    if isinstance(conventions, Conventions):
        return conventions
    if conventions not in _NAMED:
        raise ValueError(f"conventions is {conventions!r}; it must be {' or '.join(_NAMED)}")
    return _NAMED[conventions]


def for_model(conventions: Conventions, card: dict[str, Any]) -> Conventions:
    """`conventions` with what a model folder says about its training (`conventions` in its i2v.json).

    Raises ValueError naming an entry that is unknown.
    """
    if unknown := set(card) - _OF_A_MODEL:
        raise ValueError(f"conventions has unknown entries {sorted(unknown)}; known: {sorted(_OF_A_MODEL)}")
    return replace(conventions, **card)


def for_parity(conventions: Conventions) -> Conventions:
    """Upstream with its two defects that a comparison must share: its crop, and its VAE sample from the global RNG."""
    return replace(conventions, crop="upstream", vae_sample="upstream")
