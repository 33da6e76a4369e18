"""How far a request is from what the published model was trained on, as notes and warnings.

Other models say such things of themselves in their card. Called by `engine.generate`.
"""

from i2v.engine.interface import ModelInfo
from i2v.notes import Note
from i2v.request import GenerateRequest

TRAINED = (1280, 704)  # width, height
TRAINED_PIXELS = 1280 * 704
TRAINED_FRAMES = 16  # 32 were also seen
USUAL_SQUARES = (256, 512, 768)  # what most callers ask for: a note, not a warning
FRAMES = (12, 32)
SHAPES = (0.75, 2.75)  # width over height; 1280x704 is 1.8


def notes(request: GenerateRequest, info: ModelInfo) -> tuple[Note, ...]:
    """For the usual squares below half of the trained size: to be expected, so it is only noted."""
    usual = request.width == request.height and request.width in USUAL_SQUARES and _frames_fit(request)
    if info.kind != "real" or not usual or 2 * request.width * request.height >= TRAINED_PIXELS:
        return ()
    return (Note("trained_larger", {"trained": TRAINED}),)


def labels(request: GenerateRequest, info: ModelInfo) -> tuple[Note, ...]:
    """For a size, shape or length far from the trained ones: what is far, and what to ask for."""
    if info.kind != "real":
        return ()
    far = []
    pixels = request.width * request.height
    usual = request.width == request.height and request.width in USUAL_SQUARES
    if not usual and not TRAINED_PIXELS / 4 <= pixels <= TRAINED_PIXELS * 1.5:
        far.append(Note("far_size"))
    if not SHAPES[0] <= request.width / request.height <= SHAPES[1]:
        far.append(Note("far_shape"))
    if not _frames_fit(request):
        far.append(Note("far_frames"))
    if not far:
        return ()
    return (
        Note(
            "far_from_training",
            {
                "size": (request.width, request.height),
                "frames": request.num_frames,
                "far": far,
                "trained": TRAINED,
                "trained_frames": TRAINED_FRAMES,
            },
        ),
    )


def _frames_fit(request: GenerateRequest) -> bool:
    return FRAMES[0] <= request.num_frames <= FRAMES[1]
