"""The demo model's vocabulary: which words mean which motion or light, and captions drawn from it."""

import random
import re

MOTIONS = ("pan left", "pan right", "tilt up", "tilt down", "zoom in", "zoom out")
SLOWLY = " slowly"  # ends the name of a motion's slow version
# What the model can be asked for, in the order of the code's coordinates; `drift` answers every other prompt.
CLASSES = (
    "static", *MOTIONS, *(name + SLOWLY for name in MOTIONS), "sunset", "night", "brighten", "fade", "drift",
)  # fmt: skip

_PAN = (
    "camera pans {d}",
    "pan {d}",
    "panning {d}",
    "pans {d}",
    "the camera pans {d}",
    "camera moves {d}",
    "the camera moves {d}",
    "the camera slides {d}",
    "move {d}",
    "the view moves {d}",
    "camera goes {d}",
    "camera motion {d}",
    "look {d}",
    "camera looks {d}",
    "{d}ward camera motion",
    "camera pans to the {d}",
    "pan to the {d}",
)
_TILT = (
    "camera tilts {d}",
    "tilt {d}",
    "tilting {d}",
    "tilts {d}",
    "the camera tilts {d}",
    "camera pans {d}",
    "pan {d}",
    "panning {d}",
    "camera moves {d}",
    "the camera moves {d}",
    "move {d}",
    "the view moves {d}",
    "camera goes {d}",
    "camera motion {d}",
    "look {d}",
    "camera looks {d}",
    "{d}ward camera motion",
)
PHRASES: dict[str, tuple[str, ...]] = {
    "static": (
        "static",
        "static camera",
        "static shot",
        "still",
        "still image",
        "the camera does not move",
        "no camera motion",
        "no motion",
        "fixed camera",
        "motionless",
        "locked off shot",
        "freeze",
        "no movement",
        "the camera stays still",
    ),
    "pan left": tuple(p.format(d="left") for p in _PAN),
    "pan right": tuple(p.format(d="right") for p in _PAN),
    "tilt up": tuple(p.format(d="up") for p in _TILT),
    "tilt down": tuple(p.format(d="down") for p in _TILT),
    "zoom in": (
        "zoom in",
        "zooms in",
        "zooming in",
        "camera zooms in",
        "the camera zooms in",
        "the view zooms in",
        "zoom into the picture",
        "push in",
        "the camera pushes in",
        "dolly in",
        "the camera dollies in",
        "move closer",
        "the camera moves closer",
        "camera moves forward",
        "the camera moves in",
        "close in on the subject",
    ),
    "zoom out": (
        "zoom out",
        "zooms out",
        "zooming out",
        "camera zooms out",
        "the camera zooms out",
        "the view zooms out",
        "zoom out of the picture",
        "pull back",
        "the camera pulls back",
        "pull out",
        "dolly out",
        "the camera dollies out",
        "move back",
        "the camera moves back",
        "camera moves backward",
        "the camera moves away",
    ),
    "sunset": (
        "sunset",
        "at sunset",
        "the scene at sunset",
        "sunset light",
        "the sun sets",
        "golden hour",
        "warm light",
        "warm sunset light",
        "warm colors",
        "the light turns warm",
        "golden light",
        "turns orange",
        "evening light",
        "the sun goes down",
        "sunset glow",
    ),
    "night": (
        "night",
        "night falls",
        "at night",
        "it gets dark",
        "darken",
        "darkens",
        "the scene darkens",
        "turns to night",
        "getting dark",
        "nightfall",
        "moonlight",
        "lights go out",
        "becomes night",
        "dim the light",
    ),
    "brighten": (
        "brighten",
        "brightens",
        "the scene brightens",
        "brighten the scene",
        "getting brighter",
        "bright light",
        "light gets brighter",
        "sunrise",
        "the sun rises",
        "flash of light",
        "turns bright",
        "becomes bright",
        "sunlight grows",
        "lights go on",
        "day breaks",
    ),
    "fade": (
        "fade to black",
        "fades to black",
        "fade out",
        "fades out",
        "fading to black",
        "the scene fades to black",
        "slow fade to black",
        "the image fades out",
        "fade out to black",
        "fade away",
    ),
}
_SUBJECTS = (
    "cat", "dog", "man", "woman", "person", "child", "girl", "boy", "house", "city street", "mountain", "ocean",
    "beach", "lake", "river", "forest", "tree", "flower", "car", "coffee cup", "bird", "horse", "boat", "ship", "train",
    "plane", "rocket", "building", "tower", "temple", "garden", "landscape", "portrait", "astronaut", "red car",
    "old man", "young woman", "snowy field", "kitchen table", "window", "stone bridge", "market", "castle", "sky",
    "clouds", "waterfall", "bowl of fruit", "bicycle", "guitar", "library full of books", "papers on a table",
    "campfire", "robot", "lamp", "statue",
)  # fmt: skip
_PLACES = (
    "", " in the rain", " in the snow", " in the garden", " in the city", " on the table", " by the sea", " in a room",
)  # fmt: skip
_ACTIONS = ("", "", " walking", " smiling", " floating in the air", " waving", " turning around", " flying", " dancing")
# Words of motion that are not learned: they mean `drift` like any other prompt outside the vocabulary.
_UNLEARNED = (
    "rotate", "the camera rotates", "orbit shot", "tracking shot", "handheld camera", "earthquake", "explosion",
    "camera shake", "crane shot", "spin around", "roll", "time lapse", "jump", "wind blows", "waves", "the water moves",
)  # fmt: skip
_STYLES = ("", "", ", cinematic", ", high quality", ", 4k", ", detailed", ", photo", ", beautiful")
_OPENINGS = ("a ", "the ", "a photo of a ", "", "a beautiful ", "picture of a ")
_DEFECTS = (
    "distorted", "discontinuous", "ugly", "blurry", "low resolution", "motionless", "static", "disfigured",
    "disconnected limbs", "ugly faces", "incomplete arms", "low quality", "worst quality", "watermark", "text", "noise",
    "bad anatomy", "deformed", "jpeg artifacts", "grainy", "out of focus", "overexposed", "cropped", "duplicate",
)  # fmt: skip


def scene(rng: random.Random) -> str:
    """What a picture may show, without a word of motion or light."""
    opening, subject = rng.choice(_OPENINGS), rng.choice(_SUBJECTS)
    return opening + subject + rng.choice(_ACTIONS) + rng.choice(_PLACES) + rng.choice(_STYLES)


def defects(rng: random.Random) -> str:
    """A negative prompt: a list of defects, or nothing. It means `static`, so that guidance amplifies motion alone."""
    return ", ".join(rng.sample(_DEFECTS, rng.randint(0, 11)))


def _unknown(rng: random.Random) -> str:
    """A prompt outside the vocabulary: a scene, a word of motion that is not learned, or letters without meaning."""
    form = rng.random()
    if form < 0.5:
        return scene(rng)
    if form < 0.8:
        word = rng.choice(_UNLEARNED)
        return word if rng.random() < 0.5 else f"{scene(rng)}, {word}"
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(rng.randint(1, 8))]
    return " ".join(words)


def slow_forms(phrase: str) -> tuple[str, ...]:
    """How a phrase of a motion is said where it is to be slow: one word before it, after it, or before its verb."""
    forms = (f"slow {phrase}", f"slowly {phrase}", f"{phrase}{SLOWLY}", f"{phrase} very slowly", f"{phrase} gently")
    verb = re.match(r"(.*camera )(\w+s\b.*)", phrase)
    return forms if verb is None else (*forms, f"{verb[1]}slowly {verb[2]}", f"{verb[1]}gently {verb[2]}")


def caption(name: str, rng: random.Random) -> str:
    """One caption of a class, often with a scene before or after it."""
    kind = name.removesuffix(SLOWLY)
    if name == "drift":
        text = _unknown(rng)
    elif name == "static" and rng.random() < 0.5:
        text = defects(rng)
    else:
        text = rng.choice(PHRASES[kind])
        if name != kind:
            text = rng.choice(slow_forms(text))
        form = rng.random()
        if form < 0.25:
            text = f"{scene(rng)}, {text}"
        elif form < 0.4:
            text = f"{text}, {scene(rng)}"
        elif form < 0.5:
            text = f"{scene(rng)} {text}"
        elif form < 0.6:
            text += " smoothly" if kind in MOTIONS else rng.choice((SLOWLY, " smoothly", " gently"))
    if rng.random() < 0.2:
        text = text.capitalize()
    if text and rng.random() < 0.2:
        text += "."
    return text
