"""Which sizes the page offers, and what "as the photo" comes to for one photo. Knows nothing of Gradio."""

from i2v.request import PublicLimits

AS_PHOTO = "photo"
WIDE = ((1280, 704), (704, 1280))
SIDE_STEP = 64  # the UNet halves the latents three times; every part of it then sees whole pixels


def offered(limits: PublicLimits) -> list[tuple[int, int]]:
    """Squares first, then the two sizes of the model's own training, as far as the operator allows them."""
    squares = [(side, side) for side in limits.resolutions]
    wide = [(w, h) for w, h in WIDE if max(w, h) <= limits.side[1] and w * h <= limits.max_pixels]
    return squares + wide


def as_text(width: int, height: int) -> str:
    return f"{width}x{height}"


def as_photo(photo: tuple[int, int], area: int, limits: PublicLimits) -> tuple[int, int]:
    """The photo's shape at about `area` pixels: both sides multiples of 64, within the public limits."""
    width, height = photo
    scale = (area / (width * height)) ** 0.5
    low, high = limits.side
    sides = [min(high, max(low, round(side * scale / SIDE_STEP) * SIDE_STEP)) for side in (width, height)]
    while sides[0] * sides[1] > limits.max_pixels:
        longer = sides.index(max(sides))
        sides[longer] -= SIDE_STEP
    return sides[0], sides[1]


def chosen(size: str, photo: tuple[int, int], area: int, limits: PublicLimits) -> tuple[int, int]:
    """Width and height for a choice of the size list: "512x512", or `AS_PHOTO`."""
    if size == AS_PHOTO:
        return as_photo(photo, area, limits)
    width, height = size.split("x")
    return int(width), int(height)
