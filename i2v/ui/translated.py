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
    (
        r"The model was trained at (\S+); smaller videos show less detail and often less motion\.",
        r"模型以 \1 训练；尺寸较小的视频细节较少，动作也往往较弱。",
    ),
)

# Of `i2v.engine.verdict.labels` and `i2v.engine.trained_sizes.labels`.
NEARER = r"(?:, or a size nearer to (?P<size>\S+) with (?P<frames>\d+) frames)?\."
WARNINGS: tuple[Sentence, ...] = (
    (
        r"The colours end far from the photo's\. If that is not meant, try another seed, a lower guidance scale"
        + NEARER,
        "结尾的色彩与照片相差很大。如非本意，可换一个种子或降低引导强度{nearer}。",
    ),
    (
        r"Hardly anything moves in this video\. Try another seed, a lower motion_fps, a higher guidance scale" + NEARER,
        "画面几乎没有动作。可换一个种子、降低动作帧率或提高引导强度{nearer}。",
    ),
    (
        r"Hardly anything changes in this video\. This model follows (?P<words>.+)\.",
        "画面几乎没有变化。此模型会遵循：{words}。",
    ),
    (
        r"The prompt has no phrase that this model follows: (?P<words>.+), or other words for these\.",
        "提示词中没有此模型会遵循的短语：{words}，或意思相近的英文说法。",
    ),
    (
        r"(?P<asked>\S+ with \d+ frames) is far from the (?P<far>.+) the model was trained with \((?P<trained>.+)\), "
        r"so expect defects; nearer is better\.",
        "{asked}：{far}与模型的训练条件（{trained}）相差很大，可能出现瑕疵；越接近越好。",
    ),
)
PARTS = (
    ("number of frames", "帧数"),
    ("size", "尺寸"),
    ("shape", "宽高比"),
    (" and ", "、"),
    (" with ", "，"),
    (" frames", " 帧"),
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


def warned(say: Say, warning: str) -> str:
    """What the result check says, in the reader's language."""
    if not is_english(say):
        for words, chinese in WARNINGS:
            if found := re.fullmatch(words, warning):
                values = {name: value or "" for name, value in found.groupdict().items()}
                nearer = "，或采用更接近 {size}、{frames} 帧的设置".format(**values) if values.get("size") else ""
                for name in values.keys() - {"words"}:
                    for part, own in PARTS:
                        values[name] = values[name].replace(part, own)
                return chinese.format(nearer=nearer, **values)
    return warning


def is_english(say: Say) -> bool:
    return say("tab_create") == english("tab_create")
