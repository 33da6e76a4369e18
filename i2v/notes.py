"""What the engine noticed, as values, and the one place where they become words: `Note`, its sentences, and `say`.

The engine makes notes, rows and sidecars keep them as JSON, and each door says them in its reader's language. Nothing
reads a sentence back. Knows no torch, no web framework and no jobs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import Any, Literal, Union

Language = Literal["en", "zh"]
Value = Union[str, int, float, "Note", Sequence["Value"]]


@dataclass(frozen=True, slots=True)
class Note:
    """One fact: its `code`, a key of `WORDS`, and the numbers, strings, lists and notes that its sentence names."""

    code: str
    values: Mapping[str, Value] = field(default_factory=dict)


# English and Chinese by code, as `str.format` writes them. A list's joiner stands after its colon: `{size:x}` of
# [640, 480] is 640x480. Kept rows hold these codes and values: a sentence that needs other values takes a new code.
WORDS: Mapping[str, tuple[str, str]] = {
    # What the engine changed
    "guidance_kept": (
        "Guidance scale {asked:g} was set to {kept:g}; this model works from {low:g} to {high:g}.",
        "引导强度 {asked:g} 已改为 {kept:g}；此模型适用 {low:g} 到 {high:g}。",
    ),
    "prompt_cut": (
        "The {what} is {tokens} tokens long; the model reads {read}, so its last {cut} were not used.",
        "{what}长 {tokens} 个词元；模型只读取 {read} 个，最后 {cut} 个未被使用。",
    ),
    "the_prompt": ("prompt", "提示词"),
    "the_negative_prompt": ("negative prompt", "反向提示词"),
    "photo_unchanged": (
        "The photo has the size of the video ({video:x}).",
        "照片与视频尺寸相同（{video:x}）。",
    ),
    "photo_scaled": (
        "The whole photo ({photo:x}) was scaled to {video:x}.",
        "整张照片（{photo:x}）缩放至 {video:x}。",
    ),
    "photo_padded": (
        "The whole photo ({photo:x}) was scaled to {inside:x} and given black borders to {video:x}.",
        "整张照片（{photo:x}）缩放至 {inside:x}，并加黑边至 {video:x}。",
    ),
    "photo_cropped": (
        "The photo ({photo:x}) was cropped to its middle {middle:x} and scaled to {video:x}.",
        "照片（{photo:x}）裁取中央 {middle:x}，并缩放至 {video:x}。",
    ),
    "trained_larger": (
        "The model was trained at {trained:x}; smaller videos show less detail and often less motion.",
        "模型以 {trained:x} 训练；尺寸较小的视频细节较少，动作也往往较弱。",
    ),
    "out_of_memory_once": (
        "Ran out of memory once; this part was done again with {plan}.",
        "内存不足一次；这一部分已改用以下方案重做：{plan}。",
    ),
    "out_of_memory": (
        "Ran out of memory {times} times; this part was done again with {plan}.",
        "内存不足 {times} 次；这一部分已改用以下方案重做：{plan}。",
    ),
    "fake_engine": (
        "This is the fake engine, not a model: a moving test pattern over the photo.",
        "这是测试用的假引擎，并非模型：只在照片上叠加移动的图案。",
    ),
    # What is done while the model loads, and why no job is taken then
    "starting": ("starting", "正在启动"),
    "importing": ("importing the engine", "正在导入引擎"),
    "asking_hub": ("asking the hub for {repo}", "正在向模型仓库查询 {repo}"),
    "downloading": (
        "downloading {repo} ({done_gb:.2f} of {total_gb:.2f} GB)",
        "正在下载 {repo}（{done_gb:.2f} / {total_gb:.2f} GB）",
    ),
    "loading": ("loading {part}", "正在读取{part}"),
    "text_encoder": ("text encoder", "文本编码器"),
    "image_encoder": ("image encoder", "图像编码器"),
    "vae": ("vae", " VAE"),
    "unet": ("unet", " UNet"),
    "not_loaded": ("the model is not loaded yet: {what}", "模型尚未加载：{what}"),
    "not_loaded_part": ("the model is not loaded yet: {what} ({done})", "模型尚未加载：{what}（{done}）"),
    "shutting_down": ("the server is shutting down", "服务器正在关闭"),
    # Memory plan
    "plan": ("{parts:, }", "{parts:，}"),
    "resident": ("all resident", "权重常驻"),
    "model_offload": ("model offload", "按模型换出"),
    "group_offload": ("group offload", "按层组换出"),
    "one_pass": ("one guidance pass", "引导一遍"),
    "two_passes": ("two guidance passes", "引导两遍"),
    "feed_forward": ("feed-forward in {chunks}", "前馈分 {chunks} 块"),
    "decoded_at_once": ("{frames} frames decoded at once", "每次解码 {frames} 帧"),
    "steps_as": ("steps as {form}", "每步用{form}"),
    "cuda_graph": ("a CUDA graph", " CUDA 图"),
    "compiled": ("compiled", "编译后的代码"),
    # Why steps were not accelerated
    "plain_offloaded": (
        "Steps ran plainly: weights are offloaded, and a recorded step needs them in one place.",
        "各步未加速：权重会换出，而录制的步骤要求权重留在原处。",
    ),
    "plain_no_room": (
        "Steps ran plainly: a recorded step keeps {gib:.1f} GiB of its own, which do not fit beside the job.",
        "各步未加速：录制的步骤自身占用 {gib:.1f} GiB，与任务一起放不下。",
    ),
    "plain_out_of_memory": (
        "Steps ran plainly: the job ran out of memory.",
        "各步未加速：任务内存不足。",
    ),
    "plain_no_memory": (
        "Steps ran plainly: {form} could not be made, there was no memory for it.",
        "各步未加速：没有足够的内存制作{form}。",
    ),
    "plain_failed": (
        "Steps ran plainly: {form} could not be made, {error}.",
        "各步未加速：无法制作{form}（{error}）。",
    ),
    "plain_differed": (
        "Steps ran plainly: {form} differed by {difference} from the plain step.",
        "各步未加速：{form}与普通步骤相差 {difference}。",
    ),
    "plain_not_faster": (
        "Steps ran plainly: {form} was not faster ({gain:.2f} times).",
        "各步未加速：{form}并不更快（{gain:.2f} 倍）。",
    ),
    # What a preset approximates, of one job and in general
    "preset": ("Preset {preset}: {parts:; }.", "预设 {preset}：{parts:；}。"),
    "preset_described": ("{preset} — {parts:; }", "{preset}：{parts:；}"),
    "reference": ("none: DDIM in all steps, guidance in each", "无近似，DDIM 走完全部步数，每步都做引导"),
    "as_exact": ("nothing: as exact", "无近似，与 exact 相同"),
    "solver": (
        "{solver} in {steps} steps stands in for DDIM in {asked}",
        "以 {steps} 步的 {solver} 代替 {asked} 步的 DDIM",
    ),
    "solver_at_most": (
        "{solver} in at most {most} steps stands in for DDIM",
        "以至多 {most} 步的 {solver} 代替 DDIM",
    ),
    "solver_as_asked": ("{solver} in as many steps stands in for DDIM", "以同样步数的 {solver} 代替 DDIM"),
    "guidance_steps": ("guidance in steps {first} to {last} only", "仅在第 {first} 至 {last} 步做引导"),
    "guidance_part": (
        "guidance from {first} to {last} % of the way only",
        "仅在进程的 {first}% 至 {last}% 做引导",
    ),
    "guidance_nowhere": ("no step is guided", "各步均不做引导"),
    "guidance_rescaled": ("guidance rescaled by {by:g}", "引导重新缩放 {by:g}"),
    "deep_cache": (
        "one step in {interval} is whole, the others reuse deep features (DeepCache, branch {branch})",
        "每 {interval} 步完整计算一步，其余复用深层特征（DeepCache，分支 {branch}）",
    ),
    "deep_features": (
        "one step in {interval} is whole, the others reuse deep features",
        "每 {interval} 步完整计算一步，其余复用深层特征",
    ),
    # Warnings: what the result check noticed, and what to change
    "colours_drifted": (
        "The colours end far from the photo's. If that is not meant, try {advice:, }.",
        "结尾的色彩与照片相差很大。如非本意，可{advice:、}。",
    ),
    "hardly_moves": (
        "Hardly anything moves in this video. Try {advice:, }.",
        "画面几乎没有动作。可{advice:、}。",
    ),
    "hardly_changes": (
        'Hardly anything changes in this video. This model follows "{words:", "}".',
        '画面几乎没有变化。此模型会遵循："{words:", "}"。',
    ),
    "prompt_unknown": (
        'The prompt has no phrase that this model follows: "{words:", "}", or other words for these.',
        '提示词中没有此模型会遵循的短语："{words:", "}"，或意思相近的英文说法。',
    ),
    "far_from_training": (
        "{size:x} with {frames} frames is far from the {far: and } the model was trained with "
        "({trained:x}, {trained_frames} frames), so expect defects; nearer is better.",
        "{size:x}，{frames} 帧：{far:、}与模型的训练条件（{trained:x}，{trained_frames} 帧）相差很大，"
        "可能出现瑕疵；越接近越好。",
    ),
    "far_size": ("size", "尺寸"),
    "far_shape": ("shape", "宽高比"),
    "far_frames": ("number of frames", "帧数"),
    "another_seed": ("another seed", "换一个种子"),
    "lower_guidance": ("a lower guidance scale", "降低引导强度"),
    "higher_guidance": ("a higher guidance scale", "提高引导强度"),
    "lower_motion_fps": ("a lower motion_fps", "降低动作帧率"),
    "nearer_size": (
        "or a size nearer to {trained:x} with {frames} frames",
        "或采用更接近 {trained:x}（{frames} 帧）的设置",
    ),
}


def say(note: Note | str, language: Language = "en") -> str:
    """The note's sentence. Text is said as it is: rows of older versions hold sentences in English."""
    if isinstance(note, str):
        return note
    return _Words(language).format(WORDS[note.code][language == "zh"], **note.values)


def read(kept: Any) -> Note | str:
    """A note from its JSON, `{"code": ..., "values": {...}}`. A kept sentence stays text.

    So does a code that this version does not know: a newer version may have kept it.
    """
    if isinstance(kept, str):
        return kept
    if kept["code"] not in WORDS:
        return str(kept["code"])
    return Note(kept["code"], {name: _read_value(value) for name, value in kept["values"].items()})


def _read_value(kept: Any) -> Value:
    if isinstance(kept, list):
        return tuple(map(_read_value, kept))
    return read(kept) if isinstance(kept, dict) else kept


class _Words(Formatter):
    """`str.format` that says notes inside notes, and joins lists by what stands after the colon."""

    def __init__(self, language: Language) -> None:
        self.language = language

    def format_field(self, value: Any, spec: str) -> Any:
        if isinstance(value, Note):
            return say(value, self.language)
        if isinstance(value, (list, tuple)):
            return spec.join(self.format_field(part, "") for part in value)
        return format(value, spec)
