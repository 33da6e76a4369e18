"""The demo model's text encoder: a byte-level BPE tokenizer and a CLIPTextModel that writes the motion into its output.

The first coordinates of every token's embedding, as the pipeline reads it (penultimate layer, then the final norm), are
trained to be the class code `CODE` x one-hot on the last tokens, which have seen the whole text, and one more
coordinate to tell which tokens those are. The UNet's cross-attention reads the code there.
"""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tools.demo_model.captions import CLASSES, caption

WIDTH = 64
CODE = 4.0  # value of a class's coordinate; the final norm bounds the length of the whole vector by sqrt(WIDTH) = 8
FLAG = 3.0  # value of the coordinate after the code on settled tokens, minus that on all others
FLAG_AT = len(CLASSES)
SETTLED = 8  # the last tokens: they have seen the whole text
START, END = "<|startoftext|>", "<|endoftext|>"


def _bytes_to_unicode() -> list[str]:
    """The 256 printable stand-ins for bytes of GPT-2's and CLIP's byte-level BPE."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def make_tokenizer(folder: Path, rng: random.Random, merges: int = 1534) -> CLIPTokenizer:
    """Learn at most `merges` merges from captions and save CLIP's vocab.json and merges.txt to `folder`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    corpus = [re.sub(r"[^\x21-\x7e ]", "", caption(rng.choice(CLASSES), rng).lower()) for _ in range(20_000)]
    learner.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=merges + 600, end_of_word_suffix="</w>"))
    learned = json.loads(learner.to_str())["model"]["merges"][:merges]

    alphabet = _bytes_to_unicode()
    vocabulary = alphabet + [letter + "</w>" for letter in alphabet]
    known, kept = set(vocabulary), []
    for left, right in learned:
        if left in known and right in known:
            kept.append(f"{left} {right}")
            if left + right not in known:
                known.add(left + right)
                vocabulary.append(left + right)
    vocabulary += [START, END]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(
        json.dumps({t: i for i, t in enumerate(vocabulary)}, ensure_ascii=False), "utf-8"
    )
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(kept) + "\n", "utf-8")
    fast = folder / "tokenizer.json"  # written beside the two files, and read in their stead: never let an old one win
    fast.unlink(missing_ok=True)
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=77)
    tokenizer.save_pretrained(folder)
    fast.unlink(missing_ok=True)
    return tokenizer


def encode(model: CLIPTextModel, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Embeddings (B, 77, WIDTH) as the pipeline makes them: penultimate layer, then the final layer norm."""
    tokens = tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    hidden = model(tokens, output_hidden_states=True).hidden_states[-2]
    norm = model.text_model.final_layer_norm if hasattr(model, "text_model") else model.final_layer_norm
    embeddings: Tensor = norm(hidden)
    return embeddings


def build(vocabulary: int) -> CLIPTextModel:
    """An untrained text encoder for a vocabulary whose last two tokens are start and end of text."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_attention_heads=4,
            num_hidden_layers=3,
            max_position_embeddings=77,
            projection_dim=WIDTH,
        )
    )


def train(tokenizer: CLIPTokenizer, rng: random.Random, *, steps: int, say: Callable[[str], None]) -> CLIPTextModel:
    """Teach the class code; about two minutes on one core for 900 steps."""
    model = build(len(tokenizer))
    count = len(CLASSES)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    wanted_flag = torch.where(torch.arange(77) < 77 - SETTLED, -FLAG, FLAG)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 30) * (1 - step / steps) + 1e-5
        names = [rng.randrange(count) for _ in range(32)]
        embedding = encode(model, tokenizer, [caption(CLASSES[i], rng) for i in names])
        target = F.one_hot(torch.tensor(names), count).float()[:, None] * CODE
        settled, flag = embedding[:, -SETTLED:, :count], embedding[:, :, FLAG_AT]
        loss = (settled - target).pow(2).mean() + 0.3 * (flag - wanted_flag).pow(2).mean()
        if step < steps // 3:  # tells the classes apart soon; later it would push the code beyond `CODE`
            loss = loss + F.cross_entropy(settled.mean(1), torch.tensor(names))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % 100 == 0:
            right = (settled.mean(1).argmax(1) == torch.tensor(names)).float().mean()
            say(f"text encoder: step {step + 1}, loss {loss.item():.4f}, right {right:.2f}")
    return model.eval()


@torch.no_grad()
def read(model: CLIPTextModel, tokenizer: CLIPTokenizer, texts: list[str]) -> list[str]:
    """Which class each text is read as."""
    code = encode(model, tokenizer, texts)[:, -SETTLED:, : len(CLASSES)].mean(1)
    return [CLASSES[i] for i in code.argmax(1).tolist()]
