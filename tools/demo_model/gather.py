"""What the layers of cells do: say from where each cell's content is to come, fold back what is outside, then fetch it.

A cell asks for the cells nearest to the wanted place: one, and its neighbours to either side, of which it needs the
column (or row) that is next to it. Four columns side by side are so at hand, and two are made of them by linear
interpolation, each at its own place. So any smooth displacement can be asked for, to any part of a latent.
"""

from typing import Any

from torch import Tensor, eye

from tools.demo_model.autoencoder import LATENT
from tools.demo_model.layer import CLOSED, HEAD, SPOKEN, Layer
from tools.demo_model.scenes import MOVES
from tools.demo_model.stream import CELL_PLACE, END, FROM, HERE, SQUARE, UNIT, put_bias, within

SMALL = 1 / 16  # of the latents inside a transformer, so that they hardly change its norms
NEAREST = 256.0  # a cell whose centre is d latents from the wanted place has the weight exp(-NEAREST d^2)
ASIDE = 1 / 64  # latents: the search aims this far beside the wanted place, so that two cells are never equally near. A
# view that moves by whole latents in up to 32 frames comes no nearer to the middle of two cells than half of 1 / 31.
OUTERMOST = 8.0  # the last cell has exp(2 OUTERMOST) times the weight of the one before it
HALF = 0.5 / UNIT  # from the centre of a cell to that of a latent in it

X = 0  # sixteen latents of a cell, in all three layers


def aim(transformer: Any, light: dict[str, tuple[Tensor, Tensor]]) -> None:
    """From where each column and row of a cell is to come, END and SQUARE; and the light, at its full effect."""
    # inside: 0 to 15 latents, then what is named here; 26 to 41 what the light adds, 42 to 58 the class code
    here, position, end, there, square, change, code = (16, 17), 18, (19, 20), (21, 22, 23, 24), 25, 26, 42
    layer = Layer(transformer)
    layer.enter({X + k: (2 * k, SMALL) for k in range(16)} | {position: (CELL_PLACE, 1)})
    layer.enter({here[axis]: (HERE[axis], 1) for axis in (0, 1)})
    layer.read_code(code)
    for axis in (0, 1):
        layer.ask(axis, 0, {}, OUTERMOST * HEAD**0.5 * UNIT)
        layer.answer(axis, 0, {here[axis]: 1.0})
        layer.take(axis, 0, here[axis], end[axis])
        layer.leave(END[axis], end[axis])
        layer.units.square({here[axis]: 1, end[axis]: -0.5}, square)
    layer.leave(SQUARE, square)

    def when(name: str) -> tuple[dict[int, float], float]:
        """A gate as far open as the frame is on its way, for one class alone."""
        return {position: 1.0, code + SPOKEN.index(name): CLOSED}, -CLOSED

    for axis in (0, 1):
        for half, side in enumerate((-1, 1)):
            to = there[2 * axis + half]
            layer.leave(FROM[axis][half], here[axis])
            layer.leave(FROM[axis][half], to)
            put_bias(layer.proj_out.bias, FROM[axis][half], side * HALF)
            for name, move in MOVES.items():
                # of the way to the picture's middle, which is half of END and half a cell, and what the view moves
                row = {here[axis]: -move.zoom, end[axis]: move.zoom / 2} if move.zoom else {}
                moved = ((move.right, move.down)[axis] / LATENT + 0.5 * move.zoom) / UNIT - move.zoom * side * HALF
                if row or moved:
                    layer.units.add(row, moved, *when(name), to)
    for name, (matrix, offset) in light.items():
        difference = matrix - eye(4)
        for k in range(16):
            i, first = k % 4, k - k % 4
            mix = {X + first + j: float(difference[i, j]) for j in range(4)}
            layer.units.add(mix, SMALL * offset[i].item(), *when(name), change + k)
    for k in range(16):
        layer.leave(2 * k, change + k, 1 / SMALL)


def fold(transformer: Any) -> None:
    """What lies outside the picture is its mirror image, about its outermost latents.

    The transformer over frames that follows upon `aim` serves: its feed-forward is the next one that comes.
    """
    there, end = (0, 1, 2, 3), (4, 5)
    layer = Layer(transformer)
    layer.enter({there[2 * axis + half]: (FROM[axis][half], 1) for axis in (0, 1) for half in (0, 1)})
    layer.enter({end[axis]: (END[axis], 1) for axis in (0, 1)})
    for axis in (0, 1):
        for half in (0, 1):
            wanted, to = there[2 * axis + half], 6 + 2 * axis + half
            layer.units.add({}, 2 / UNIT, {wanted: -UNIT}, 0.5, to)
            layer.units.add({}, -2 / UNIT, {wanted: UNIT, end[axis]: -UNIT}, -0.5, to)
            layer.leave(FROM[axis][half], to)


def fetch(transformer: Any, axis: int) -> None:
    """Take the content along one axis, 0 across and 1 down."""
    # inside: 0 to 15 latents, then what is named here; 22 to 37 what was found, 38 to 53 what is next to it
    here, there, square, found_at = (16, 17), (18, 19), 20, 21
    found, before, after = 22, 38, 46
    layer = Layer(transformer)
    layer.enter({X + k: (2 * k, SMALL) for k in range(16)} | {square: (SQUARE, 1)})
    layer.enter({here[i]: (HERE[i], 1.0) for i in (0, 1)} | {there[i]: (FROM[axis][i], 1.0) for i in (0, 1)})
    layer.enter({here[i]: (END[i], -0.5) for i in (0, 1)})  # from the middle: small numbers have small squares
    layer.enter({there[i]: (END[axis], -0.5) for i in (0, 1)})

    root = (NEAREST * UNIT**2 * HEAD**0.5) ** 0.5  # -NEAREST |there - here|^2, less what all cells share
    other = here[1 - axis]
    for head, shift in ((0, 0.0), (1, -2.0), (2, 2.0), (3, 0.0)):
        layer.ask(head, 0, {there[0]: root, there[1]: root}, 2 * root * (shift + ASIDE) / UNIT)
        layer.answer(head, 0, {here[axis]: root})
        layer.ask(head, 1, {other: 2 * root})
        layer.answer(head, 1, {other: root})
        layer.ask(head, 2, {}, -root)
        layer.answer(head, 2, {square: root})
    layer.take(3, 0, here[axis], found_at)

    def at(i: int, along: int, across: int) -> int:
        return within(i, across, along) if axis == 0 else within(i, along, across)

    for k in range(16):
        layer.take(0, k, X + k, found + k)
        layer.leave(2 * k, found + k, 1 / SMALL)
        layer.leave(2 * k, X + k, -1 / SMALL)
    for across in (0, 1):
        for i in range(4):
            number = 4 * across + i
            layer.take(1, number, X + at(i, 1, across), before + number)
            layer.take(2, number, X + at(i, 0, across), after + number)
            # the four at -3/2, -1/2, 1/2 and 3/2 of the found cell's centre; u is where each of the two is wanted
            near = (found + at(i, 0, across), found + at(i, 1, across))
            far = (before + number, after + number)
            for half, side in ((0, 1.0), (1, -1.0)):
                own, partner, behind, beyond = near[half], near[1 - half], far[half], far[1 - half]
                u = {there[half]: UNIT * side, found_at: -UNIT * side}
                back = {channel: -factor for channel, factor in u.items()}
                layer.units.add({partner: 1, own: -1}, 0.0, u, 0.5, own)
                layer.units.add({beyond: 1, partner: -2, own: 1}, 0.0, u, -0.5, own)
                layer.units.add({behind: 1, own: -1}, 0.0, back, -0.5, own)
