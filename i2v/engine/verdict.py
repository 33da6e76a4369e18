"""Is a video usable? What nobody can want fails the job; what may be intended is only reported, with what to change.

Looks at the frames and the fitted photo as small mosaics, in numpy alone. Called by `engine.generate` at the end.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from i2v.engine.interface import Frames, ModelInfo
from i2v.engine.trained_sizes import TRAINED, TRAINED_FRAMES
from i2v.errors import InvalidOutput
from i2v.notes import Note
from i2v.request import GenerateRequest

# Levels of 0..255. Measured on the demo model, five photos by nine words: spread of the photos 27 to 71, of last frames
# that are not faded to black 7 and more; tint moves by up to 74 (sunset); change 5 to 6 when static, else 41 and more.
BLACK = 2  # a video whose every pixel is at or below it holds nothing
FLAT = 2.0  # spread of a mosaic without a picture
PICTURE = 12.0  # spread from which the photo counts as one: a wall or a clear sky may stay flat
DARK, BRIGHT = 24.0, 231.0  # means between which a flat frame is no fade to black or to white
DRIFT = 90.0  # distance of two tints
STILL = 10.0  # change of all but 2% of the mosaic: what moves in a fiftieth of the picture counts as motion
MEANT_STILL = ("static", "still", "motionless", "no motion", "frozen")  # in a prompt: no label then

Mosaic = NDArray[np.float32]  # (N, h, w, 3): means of 8x8 pixels


@dataclass(frozen=True, slots=True)
class Verdict:
    """`failure` says why the video is unusable (None: it is usable); the others are what a person should look at."""

    failure: str | None = None
    drifted: bool = False
    still: bool = False


def judge(frames: Frames, photo: NDArray[np.uint8]) -> Verdict:
    """`frames` (F, H, W, 3) against the photo they start from, fitted to (H, W, 3); both uint8 RGB."""
    if failure := blackness(frames, photo):
        return Verdict(failure)
    video, picture = mosaic(frames), mosaic(photo[None])
    if failure := flatness(video, picture[0]):
        return Verdict(failure)
    return Verdict(drifted=drifted(video, picture[0]), still=still(video))


def refuse(verdict: Verdict) -> None:
    """Raise InvalidOutput for a video that failed."""
    if verdict.failure is not None:
        raise InvalidOutput(f"{verdict.failure}; another seed, size or guidance scale may help")


def labels(verdict: Verdict, request: GenerateRequest, info: ModelInfo) -> tuple[Note, ...]:
    """What to say about a video that may be as it was meant, and what to change if it is not."""
    nearer = [Note("nearer_size", {"trained": TRAINED, "frames": TRAINED_FRAMES})] if info.kind == "real" else []
    said = []
    if verdict.drifted:
        said.append(Note("colours_drifted", {"advice": (Note("another_seed"), Note("lower_guidance"), *nearer)}))
    if verdict.still and not any(word in request.prompt.lower() for word in MEANT_STILL):
        if info.vocabulary:
            said.append(Note("hardly_changes", {"words": info.vocabulary}))
        else:
            advice = (Note("another_seed"), Note("lower_motion_fps"), Note("higher_guidance"), *nearer)
            said.append(Note("hardly_moves", {"advice": advice}))
    if not info.knows(request.prompt):
        said.append(Note("prompt_unknown", {"words": info.vocabulary}))
    return tuple(said)


def mosaic(pictures: NDArray[np.uint8], cell: int = 8) -> Mosaic:
    """(N, H, W, 3) to the means of `cell` x `cell` pixels: noise and fine texture leave, the picture stays.

    What is left over at the right and lower edges is not looked at, unless the picture is smaller than a cell.
    """
    cell = min(cell, pictures.shape[1], pictures.shape[2])
    high, wide = pictures.shape[1] // cell, pictures.shape[2] // cell
    cut = pictures[:, : high * cell, : wide * cell].reshape(len(pictures), high, cell, wide, cell, 3)
    means: Mosaic = cut.mean(axis=(2, 4), dtype=np.float32)
    return means


def blackness(frames: Frames, photo: NDArray[np.uint8]) -> str | None:
    """A video that is black from its first frame on, unless the photo is black itself."""
    return "every frame of the video is black" if frames.max() <= BLACK < photo.max() else None


def flatness(video: Mosaic, photo: NDArray[np.float32]) -> str | None:
    """A video without a picture although the photo has one: from the start, from its middle on, or in its last frame.

    Fades are meant: a flat frame that is dark or bright counts only where no frame has a picture, or where it follows
    right upon one that still has most of it.
    """
    if spread(photo[None])[0] < PICTURE:
        return None
    spreads, means = spread(video), video.mean(axis=(1, 2, 3))
    flat = spreads < FLAT
    if flat.all():
        return f"every frame of the video is one flat {colour(video[0])}"
    coloured = flat & (means > DARK) & (means < BRIGHT)
    if coloured[-1] and 2 * coloured.sum() >= len(video):
        return f"the video drifts into a flat {colour(video[-1])}"
    if flat[-1] and spreads[-2] > 0.5 * spreads.max():
        return "the last frame of the video is blank"
    return None


def drifted(video: Mosaic, photo: NDArray[np.float32]) -> bool:
    """The colours end far from the photo's. A strong sunset may do that too, so this is for a label alone.

    A picture that gets darker keeps its hue and loses tint in proportion; that is no drift.
    """
    kept = min(1.0, float(video[-1].mean()) / max(1.0, float(photo.mean())))
    return float(np.linalg.norm(tint(video[-1]) - kept * tint(photo))) > DRIFT


def still(video: Mosaic) -> bool:
    """Nothing moves and no light changes. Frame 0 is left out where it can be: it is nearer to the photo."""
    moving = video[1:] if len(video) > 2 else video
    change = np.abs(moving - moving[0]).mean(axis=3).max(axis=0)  # (h, w)
    return len(video) > 1 and float(np.percentile(change, 98)) < STILL


def spread(video: Mosaic) -> NDArray[np.float32]:
    """The largest standard deviation of the three colours within each picture, (N,)."""
    deviations: NDArray[np.float32] = video.std(axis=(1, 2)).max(axis=1)
    return deviations


def tint(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean colour (3,) without its brightness."""
    mean = picture.mean(axis=(0, 1))
    without: NDArray[np.float32] = mean - mean.mean()
    return without


def colour(picture: NDArray[np.float32]) -> str:
    mean = picture.mean(axis=(0, 1))
    if mean.max() - mean.min() < 30:
        return "grey" if DARK < mean.mean() < BRIGHT else "black" if mean.mean() <= DARK else "white"
    return ("red", "green", "blue")[int(mean.argmax())]
