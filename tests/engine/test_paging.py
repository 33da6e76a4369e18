"""Blocks that visit the device in turn: at most two are there, the next one travels early, and none is used too soon.

The device is a double: a copy holds rubbish until it is waited for, and again once its block is given up, so a wait
that is missing shows in the numbers.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from i2v.engine import paging
from i2v.engine.paging import Held, blocks_of, page
from i2v.engine.residency import resident
from i2v.engine.unet.model import DeepCache, I2VGenXLUNet
from tests.engine.unet.unet_pairs import CONFIGS, Inputs, inputs, own, upstream

pytestmark = pytest.mark.slow

META = torch.device("meta")


class LateLane:
    """A device whose copies arrive only when waited for and whose work ends only when the host waits for it."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int]] = []
        self.numbers: dict[int, int] = {}  # a block's first owner, in the order of first copies
        self.copies: dict[int, list[tuple[Held, Tensor]]] = {}
        self.unfinished: set[int] = set()
        self.most = 0

    def bring(self, homes: list[Held]) -> int:
        number = self.numbers.setdefault(id(homes[0][0]), len(self.numbers))
        given_up = {block for block in self.copies if not self.holds(block)}
        assert not given_up & self.unfinished, "memory is taken again while its work may still run"
        self.copies[number] = [(held, torch.full_like(held[2], float("nan"))) for held in homes]
        for (owner, name, _), late in self.copies[number]:
            paging.hold(owner, name, late)
        self.most = max(self.most, sum(map(self.holds, self.copies)))
        self.log.append(("bring", number))
        return number

    def holds(self, block: int) -> bool:
        (owner, name, _), late = self.copies[block][0]
        return getattr(owner, name).data_ptr() == late.data_ptr()

    def arrive(self, copy: int) -> None:
        for (_, _, home), late in self.copies[copy]:
            late.copy_(home)
        self.unfinished.add(copy)
        self.log.append(("run", copy))

    def mark(self) -> int:
        return next(number for event, number in reversed(self.log) if event == "run")

    def finish(self, mark: int) -> None:
        self.unfinished.discard(mark)
        self.log.append(("finish", mark))

    def drain(self) -> None:
        self.unfinished.clear()
        self.log.append(("drain", -1))

    def runs(self) -> list[int]:
        return [number for event, number in self.log if event == "run"]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(params=["published", "demo", "one level"])
def job(request: pytest.FixtureRequest) -> tuple[I2VGenXLUNet, Inputs]:
    config = CONFIGS[request.param]
    return own(upstream(config)), inputs(config, 3, 6, 5)


def walk(unet: I2VGenXLUNet, job: Inputs, **options: Any) -> list[Tensor]:
    """Four steps as `turbo` makes them: whole, reusing deep features, whole, reusing."""
    cache = DeepCache(1)
    state = job.begin(unet, **options)
    steps = [(1, True), (2, False), (0, True), (1, False)]
    return [unet.step(state, job.latents, index, cache=cache, refresh=refresh) for index, refresh in steps]


@pytest.mark.parametrize("passes", [1, 2])
def test_steps_on_visiting_blocks_equal_steps_on_resident_ones(job: tuple[I2VGenXLUNet, Inputs], passes: int) -> None:
    unet, given = job
    expected = walk(unet, given, guidance_passes=passes)
    lane = LateLane()
    with ExitStack() as stack:
        page(unet, lane, stack)
        results = walk(unet, given, guidance_passes=passes)
    assert all(torch.equal(result, wanted) for result, wanted in zip(results, expected, strict=True))
    assert lane.most == 2


def test_the_next_block_is_sent_for_while_one_works(job: tuple[I2VGenXLUNet, Inputs]) -> None:
    """It is under way before the host waits for the block that works, and each is brought once a step."""
    unet, given = job
    blocks = len(blocks_of(unet))
    lane = LateLane()
    with ExitStack() as stack:
        page(unet, lane, stack)
        state = given.begin(unet)
        for index in range(2):
            unet.step(state, given.latents, index)
    assert lane.runs() == [*range(blocks), *range(blocks)]
    assert [number for event, number in lane.log if event == "bring"] == [*range(blocks), *range(blocks), 0]
    for number in range(blocks - 1):
        assert lane.log.index(("run", number)) < lane.log.index(("bring", number + 1))
        assert lane.log.index(("bring", number + 1)) < lane.log.index(("finish", number))


def test_what_followed_last_time_is_expected_next_time(job: tuple[I2VGenXLUNet, Inputs]) -> None:
    """Steps that reuse deep features leave the same blocks out: only the first of them guesses wrong."""
    unet, given = job
    cache = DeepCache(0)
    lane = LateLane()
    with ExitStack() as stack:
        page(unet, lane, stack)
        state = given.begin(unet)
        unet.step(state, given.latents, 0, cache=cache, refresh=True)
        for _ in range(2):
            unet.step(state, given.latents, 1, cache=cache, refresh=False)
        lane.log.clear()
        unet.step(state, given.latents, 2, cache=cache, refresh=False)
    assert len(lane.runs()) < len(blocks_of(unet))
    assert [number for event, number in lane.log if event == "bring"] == [*lane.runs()[1:], lane.runs()[0]]


def test_a_copy_that_is_not_waited_for_shows(job: tuple[I2VGenXLUNet, Inputs]) -> None:
    """The double proves something: without the wait the results are not finite."""

    class Hasty(LateLane):
        def arrive(self, copy: int) -> None:
            self.log.append(("run", copy))

    unet, given = job
    with ExitStack() as stack:
        page(unet, Hasty(), stack)
        result = unet.step(given.begin(unet), given.latents, 0)
    assert not torch.isfinite(result).all()


def test_a_block_that_fails_leaves_everything_at_home(job: tuple[I2VGenXLUNet, Inputs]) -> None:
    unet, given = job
    state = given.begin(unet)  # arranged now: the kernels' memory is as it stays
    before = {name: (tensor.clone(), tensor.data_ptr()) for name, tensor in unet.state_dict().items()}
    bad = blocks_of(unet)[3]
    bad.forward = lambda *_: (_ for _ in ()).throw(RuntimeError("in the block"))  # type: ignore[method-assign]
    lane = LateLane()
    with ExitStack() as stack:
        stack.callback(paging.leave, paging.homes_of(unet))
        page(unet, lane, stack)
        with pytest.raises(RuntimeError, match="in the block"):
            unet.step(state, given.latents, 0)
    assert lane.log[-1] == ("drain", -1)
    after = unet.state_dict()
    assert all(torch.equal(after[name], kept) and after[name].data_ptr() == at for name, (kept, at) in before.items())


def test_a_device_without_streams_holds_two_blocks_at_most() -> None:
    """The meta device stands in for a GPU, so that the place of every tensor can be seen."""
    config = CONFIGS["published"]
    unet = own(upstream(config))
    blocks = blocks_of(unet)
    held: list[int] = []

    def places(module: nn.Module) -> set[str]:
        return {tensor.device.type for tensor in [*module.parameters(), *module.buffers()]}

    def look(*_: Any) -> None:
        held.append(sum(places(other) == {"meta"} for other in blocks))

    for block in blocks:
        block.register_forward_pre_hook(look)
        block.register_forward_hook(look)
    given = inputs(config, 2, 8, 8)
    given = Inputs(*(x.to(META) for x in (given.text, given.image_embeddings, given.image_latents, given.latents)))
    with resident(unet, META, "group"):
        assert places(unet) == {"meta"}  # what is computed once a request reads every block
        state = given.begin(unet)
        for index in range(2):
            assert unet.step(state, given.latents, index).shape == (2, 4, 2, 8, 8)
    assert set(held) == {1, 2}
    assert len(held) == 4 * len(blocks) > 40
    assert places(unet) == {"cpu"}


def test_the_blocks_are_all_that_the_levels_hold(job: tuple[I2VGenXLUNet, Inputs]) -> None:
    unet, _ = job
    levels = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    held = [id(parameter) for block in blocks_of(unet) for parameter in block.parameters()]
    assert sorted(held) == sorted(id(parameter) for level in levels for parameter in level.parameters())
