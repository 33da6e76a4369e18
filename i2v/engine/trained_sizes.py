"""How far a request is from what the published model was trained on, in one honest sentence.

Other models say such things of themselves in their card. Called by `engine.generate`.
"""

from i2v.engine.interface import ModelInfo
from i2v.request import GenerateRequest

TRAINED_PIXELS = 1280 * 704  # with 16 frames; 32 were also seen
USUAL_SQUARES = (256, 512, 768)  # what most callers ask for: a note, not a warning
FRAMES = (12, 32)
SHAPES = (0.75, 2.75)  # width over height; 1280x704 is 1.8


def notes(request: GenerateRequest, info: ModelInfo) -> tuple[str, ...]:
    """For the usual squares below half of the trained size: to be expected, so it is only noted."""
    usual = request.width == request.height and request.width in USUAL_SQUARES and _frames_fit(request)
    if info.kind != "real" or not usual or 2 * request.width * request.height >= TRAINED_PIXELS:
        return ()
    return ("The model was trained at 1280x704; smaller videos show less detail and often less motion.",)


def labels(request: GenerateRequest, info: ModelInfo) -> tuple[str, ...]:
    """For a size, shape or length far from the trained ones: what is far, and what to ask for."""
    if info.kind != "real":
        return ()
    far = []
    pixels = request.width * request.height
    usual = request.width == request.height and request.width in USUAL_SQUARES
    if not usual and not TRAINED_PIXELS / 4 <= pixels <= TRAINED_PIXELS * 1.5:
        far.append("size")
    if not SHAPES[0] <= request.width / request.height <= SHAPES[1]:
        far.append("shape")
    if not _frames_fit(request):
        far.append("number of frames")
    if not far:
        return ()
    what = " and ".join(far)
    return (
        f"{request.width}x{request.height} with {request.num_frames} frames is far from the {what} "
        "the model was trained with (1280x704, 16 frames), so expect defects; nearer is better.",
    )


def _frames_fit(request: GenerateRequest) -> bool:
    return FRAMES[0] <= request.num_frames <= FRAMES[1]
