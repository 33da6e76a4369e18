"""What the page says before a job is sent: the crop on the photo, how long it will take, what the prompt lacks."""

from html import escape

from i2v.engine.interface import MemoryNeed, ModelInfo
from i2v.images import Placement
from i2v.ui.texts import Say, duration

TOKENS_READ = 75  # 77 positions of the text encoder, less start and end
CHARACTERS_A_TOKEN = 4.5  # of English prose in the CLIP vocabulary, spaces included


def notice(text: str, kind: str = "bad") -> str:
    """An inline message; `bad` is announced to screen readers at once."""
    if not text:
        return ""
    role = "alert" if kind == "bad" else "status"
    return f"<div class='notice {kind}' role='{role}'>{escape(text)}</div>"


def crop(say: Say, placement: Placement) -> str:
    """A frame over the photo that shows what the video will show, and a sentence that says it."""
    (wide, high), (left, top, right, bottom) = placement.source, placement.box
    if placement.is_whole:
        return f"<p class='crop-words'>{escape(say('crop_as_is'))}</p>"
    if placement.fit == "pad":
        return (
            f"<p class='crop-words'>{escape(say('crop_padded', width=placement.size[0], height=placement.size[1]))}</p>"
        )
    edges = (100 * top / high, 100 * (1 - right / wide), 100 * (1 - bottom / high), 100 * left / wide)
    inset = " ".join(f"{max(0.0, edge):.3f}%" for edge in edges)
    words = say("crop_part", width=round(right - left), height=round(bottom - top), wide=wide, high=high)
    frame = f"<style>#photo .image-frame::after{{content:'';inset:{inset}}}</style>"
    return f"{frame}<p class='crop-words'>{escape(words)}</p>"


def estimate(say: Say, seconds: float | None, waiting: int, need: MemoryNeed | None, *, is_ready: bool) -> list[str]:
    """How long a job would take here, how many wait before it, and its memory.

    `seconds` is None before this machine has finished a job, `need` where memory is not counted.
    """
    if seconds is None:
        words = [say("estimate_none")] if is_ready else []
    elif waiting:
        words = [say("estimate_queue", time=duration(say, seconds), n=waiting)]
    else:
        words = [say("estimate", time=duration(say, seconds))]
    if need is not None:
        words.append(say("estimate_memory", needed=gigabytes(need.needed), available=gigabytes(need.available)))
    return words


def gigabytes(count: int) -> str:
    """In GB, one digit where that says enough."""
    return f"{count / 1e9:.1f} GB" if count >= 50_000_000 else f"{count / 1e9:.2f} GB"


def about_prompt(say: Say, prompt: str, model: ModelInfo | None = None) -> str:
    """What is likely to go wrong with this prompt, or nothing."""
    if not prompt.strip():
        return say("needs_prompt")
    if model is not None and model.phrases and not model.knows(prompt):
        return say("not_known", words=" · ".join(model.vocabulary))
    letters = [character for character in prompt if character.isalpha()]
    foreign = sum(1 for character in letters if not character.isascii())
    if letters and foreign / len(letters) > 0.3:
        return say("not_english")
    tokens = max(len(prompt.split()), round(len(prompt) / CHARACTERS_A_TOKEN))
    return say("too_long", n=tokens) if tokens > TOKENS_READ else ""
