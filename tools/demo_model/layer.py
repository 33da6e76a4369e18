"""One transformer of the wired UNet, cleared: how channels of the stream enter and leave it, and its units.

Inside, opposite channels of the size `LONG` fix the deviation of the layer norms, and `Layer.sum` takes
the opposite of everything else, so that their mean is zero.
"""

import math
from typing import Any

from tools.demo_model.captions import CLASSES
from tools.demo_model.stream import open_norm, silence
from tools.demo_model.text import CODE, FLAG, FLAG_AT

HEAD = 16  # channels of an attention's head
LONG = 1000.0
SHARP = 200.0  # gelu(SHARP * x) / SHARP is nearly relu(x)
CLOSED = 4.0  # what a gate of another class is short of opening
SPOKEN = tuple(name for name in CLASSES if name != "static")  # the classes that ask for something


class Layer:
    """A transformer's weights. Inner channels are the caller's to number, but for the last three."""

    def __init__(self, transformer: Any) -> None:
        self.block = transformer.transformer_blocks[0]
        attention = self.block.attn1
        for layer in (transformer.proj_in, transformer.proj_out, attention.to_out[0], self.block.attn2.to_out[0]):
            silence(layer)
        for layer in (attention.to_q, attention.to_k, attention.to_v):
            silence(layer)
        open_norm(transformer.norm)
        self.proj_in, self.proj_out = transformer.proj_in, transformer.proj_out
        self.inner = len(self.proj_in.weight)
        self.sum, self.long = self.inner - 3, self.inner - 2
        self.deviation = LONG * math.sqrt(2 / self.inner)
        self.proj_in.bias[self.long], self.proj_in.bias[self.long + 1] = LONG, -LONG
        self.units = Units(self.block.ff, self.deviation)

    def enter(self, channels: dict[int, tuple[int, float]]) -> None:
        """Inner channel = factor x a pair of the stream; `sum` takes the opposite of all."""
        weight = self.proj_in.weight.view(self.inner, -1)
        for inner, (channel, factor) in channels.items():
            weight[inner, channel] = factor
            weight[self.sum, channel] -= factor

    def leave(self, pair: int, inner: int, factor: float = 1.0) -> None:
        """Add factor x an inner channel to a pair of the stream."""
        weight = self.proj_out.weight.view(-1, self.inner)
        weight[pair, inner] += factor
        weight[pair + 1, inner] -= factor

    def ask(self, head: int, number: int, terms: dict[int, float], constant: float = 0.0) -> None:
        """Coordinate `number` of a head's queries, of inner channels and a constant."""
        self._row(self.block.attn1.to_q.weight, head, number, terms)
        self.block.attn1.to_q.weight[head * HEAD + number, self.long] += constant * self.deviation / LONG

    def answer(self, head: int, number: int, terms: dict[int, float]) -> None:
        """Coordinate `number` of a head's keys, of inner channels."""
        self._row(self.block.attn1.to_k.weight, head, number, terms)

    def take(self, head: int, number: int, source: int, to: int) -> None:
        """What a head finds in the inner channel `source` is added to the channel `to`."""
        self._row(self.block.attn1.to_v.weight, head, number, {source: 1.0})
        out = self.block.attn1.to_out[0].weight
        out[to, head * HEAD + number], out[self.sum, head * HEAD + number] = 1, -1

    def read_code(self, first: int) -> None:
        """Cross-attention looks at the text tokens with the flag alone; the code of `SPOKEN` goes to `first` and on."""
        attention = self.block.attn2
        for layer in (attention.to_q, attention.to_k, attention.to_v):
            silence(layer)
        for head in range(attention.heads):
            attention.to_q.weight[head * HEAD, self.long] = self.deviation / LONG
            attention.to_k.weight[head * HEAD, FLAG_AT] = 15 * math.sqrt(HEAD) / FLAG
        for number, name in enumerate(SPOKEN):
            attention.to_v.weight[number, CLASSES.index(name)] = 1 / CODE
            attention.to_out[0].weight[first + number, number] = 1
            attention.to_out[0].weight[self.sum, number] = -1

    def _row(self, weight: Any, head: int, number: int, terms: dict[int, float]) -> None:
        for channel, factor in terms.items():
            weight[head * HEAD + number, channel] += factor * self.deviation


class Units:
    """GEGLU units of one feed-forward layer, used one by one. `deviation` is that of the layer norm before it."""

    def __init__(self, feed_forward: Any, deviation: float) -> None:
        self.first, self.last = feed_forward.net[0].proj, feed_forward.net[-1]
        silence(self.first)
        silence(self.last)
        self.deviation, self.used = deviation, 0

    def square(self, row: dict[int, float], to: int) -> None:
        """Channel `to` += (row . inner)^2: x gelu(x) - x gelu(-x) = x^2."""
        for sign in (1, -1):
            turned = {channel: sign * factor for channel, factor in row.items()}
            self.add(turned, 0.0, turned, 0.0, to)

    def add(self, row: dict[int, float], offset: float, gate: dict[int, float], start: float, to: int) -> None:
        """Channel `to` += (row . inner + offset) * relu(gate . inner + start)."""
        hidden = self.used
        opening = self.last.weight.shape[1] + hidden
        self.used += 1
        for channel, value in row.items():
            self.first.weight[hidden, channel] = value * self.deviation
        for channel, value in gate.items():
            self.first.weight[opening, channel] = SHARP * value * self.deviation
        self.first.bias[hidden], self.first.bias[opening] = offset, SHARP * start
        self.last.weight[to, hidden] = 1 / SHARP
