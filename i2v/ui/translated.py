"""Sentences of the engine in Chinese. Every other surface shows them as they are written, and so does an English page.

A sentence that nobody has translated stays English.
"""

import re

from i2v.engine.fake import NOTE
from i2v.ui.texts import Say, english

Sentence = tuple[str, str]  # a pattern of the English one, what stands for it

# Of `i2v.engine.memory.Plan`.
PLAN: tuple[Sentence, ...] = (
    ("all resident", "权重常驻"),
    ("model offload", "按模型换出"),
    ("group offload", "按层组换出"),
    ("one guidance pass", "引导一遍"),
    ("two guidance passes", "引导两遍"),
    (r"feed-forward in (\d+)", r"前馈分 \1 块"),
    (r"(\d+) frames decoded at once", r"每次解码 \1 帧"),
)

# Of `i2v.images.Placement.describe` and the engine's notes.
NOTES: tuple[Sentence, ...] = (
    (r"The photo has the size of the video \((\S+)\)\.", r"照片与视频尺寸相同（\1）。"),
    (r"The whole photo \((\S+)\) was scaled to (\S+)\.", r"整张照片（\1）缩放至 \2。"),
    (
        r"The whole photo \((\S+)\) was scaled to (\S+) and given black borders to (\S+)\.",
        r"整张照片（\1）缩放至 \2，并加黑边至 \3。",
    ),
    (
        r"The photo \((\S+)\) was cropped to its middle (\S+) and scaled to (\S+)\.",
        r"照片（\1）裁取中央 \2，并缩放至 \3。",
    ),
    (
        r"Guidance scale (\S+) was set to (\S+); this model works from (\S+) to (\S+)\.",
        r"引导强度 \1 已改为 \2；此模型适用 \3 到 \4。",
    ),
    (re.escape(NOTE), "这是测试用的假引擎，并非模型：只在照片上叠加移动的图案。"),
)


def planned(say: Say, plan: str) -> str:
    """A memory plan in the reader's language."""
    if is_english(say):
        return plan
    for words, chinese in PLAN:
        plan = re.sub(words, chinese, plan)
    return plan.replace(", ", "，")


def noted(say: Say, note: str) -> str:
    """One of a result's notes in the reader's language."""
    if not is_english(say):
        for words, chinese in NOTES:
            if found := re.fullmatch(words, note):
                return found.expand(chinese)
    return note


def is_english(say: Say) -> bool:
    return say("tab_create") == english("tab_create")
