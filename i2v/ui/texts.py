"""Every word of the page, in English and Chinese, in one table.

Labels go to Gradio's I18n, which translates in the browser; sentences with numbers in them are written on the server
by `say`, in the language that the browser asks for.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import gradio as gr
from gradio.i18n import I18nData

from i2v import notes
from i2v.engine.interface import ModelInfo
from i2v.errors import DoesNotFit, I2VError, InvalidRequest
from i2v.notes import Language, Note

TABLE: dict[str, tuple[str, str]] = {
    # Header and tabs
    "tagline": ("Turn a photo into a short video.", "让照片动起来。"),
    "tab_create": ("Create", "创作"),
    "tab_history": ("History", "历史"),
    "tab_system": ("System", "系统"),
    "scheme_dark": ("Dark", "深色"),
    "scheme_light": ("Light", "浅色"),
    # Model banner
    "on_device": ("on {device}", "运行于 {device}"),
    "loading_model": ("The model is loading", "模型正在加载"),
    "loading_hint": (
        "You can already choose a photo and write the prompt.",
        "现在就可以选择照片并填写提示词。",
    ),
    "reason": ("{message}", "原因：{message}"),
    "model_failed": ("The model could not be loaded.", "模型加载失败。"),
    "server_stopping": ("The server is shutting down.", "服务器正在关闭。"),
    "server_dead": (
        "The model has stopped working; the server is starting again. The queue is kept.",
        "模型已停止工作，服务器正在重启，队列会保留。",
    ),
    # Form
    "photo": ("Photo", "照片"),
    "photo_hint": ("# Drop a photo\nor click to choose one; paste works too", "# 拖入照片\n或点击选择，也可粘贴"),
    "prompt": ("What should happen?", "画面中会发生什么？"),
    "prompt_placeholder": (
        "Describe the scene and its motion in English, e.g. “the scene at sunset”",
        "请用英文描述画面与动作，例如 “the scene at sunset”",
    ),
    "examples": ("Examples — click to use", "示例（点击使用）"),
    "seed_wanted": ("Seed: write a whole number, or leave it empty.", "种子：请填写整数，或留空。"),
    "quality": ("Quality", "质量"),
    "quality_fast": ("Fast", "快速"),
    "quality_standard": ("Standard", "标准"),
    "quality_high": ("High quality", "高质量"),
    "size": ("Size", "尺寸"),
    "size_photo": ("As the photo", "与照片一致"),
    "fit": ("Other shapes are", "比例不同时"),
    "fit_crop": ("cropped", "裁剪"),
    "fit_pad": ("padded", "加边"),
    "advanced": ("Advanced", "高级参数"),
    "negative": ("Negative prompt", "反向提示词"),
    "negative_info": (
        "What the video should not show. Empty: the model’s usual one.",
        "不希望出现的内容。留空则使用模型默认值。",
    ),
    "frames": ("Frames", "帧数"),
    "frames_info": ("More frames: a longer video, more time and memory.", "帧数越多，视频越长，耗时与内存也越多。"),
    "fps": ("Playback rate (fps)", "播放帧率（fps）"),
    "fps_info": ("How fast the file plays.", "视频文件的播放速度。"),
    "motion_fps": ("Motion fps", "运动帧率"),
    "motion_fps_info": (
        "The frame rate the model imagines: lower means larger movements between frames.",
        "模型设想的帧率：越低，帧与帧之间的动作越大。",
    ),
    "steps": ("Steps", "步数"),
    "steps_info": ("Denoising steps: more detail, more time.", "去噪步数：越多越精细，也越慢。"),
    "guidance": ("Guidance scale", "引导强度"),
    "guidance_info": (
        "How strictly the prompt is followed. 1 turns guidance off.",
        "对提示词的遵循程度，1 表示关闭引导。",
    ),
    "guidance_kept": (
        "This model works with {low} to {high}; other values are moved into this range.",
        "此模型适用 {low} 到 {high}，超出的值会被调整到该范围。",
    ),
    "seed": ("Seed", "种子"),
    "seed_info": (
        "Empty: a new one each time. The same seed gives the same video.",
        "留空则每次随机。种子相同，结果相同。",
    ),
    "seed_lock": ("🔒 Lock", "🔒 固定"),
    "seed_dice": ("🎲 New", "🎲 随机"),
    "seed_same": ("Same again", "沿用上次"),
    "preset": ("Shortcuts the sampler takes", "采样捷径"),
    "generate": ("Generate video", "生成视频"),
    "cancel": ("Cancel", "取消"),
    # Hints under the button
    "estimate": ("About {time} on this machine.", "本机约需 {time}。"),
    "estimate_queue": (
        "About {time} on this machine, after {n} waiting.",
        "本机约需 {time}，前面还有 {n} 个任务。",
    ),
    "estimate_none": ("The first run shows how fast this machine is.", "首次运行后即可估计耗时。"),
    "estimate_memory": (
        "The job itself needs about {needed} of memory; {available} can be had.",
        "任务本身约需 {needed} 内存，可用 {available}。",
    ),
    "needs_photo": ("Choose a photo first.", "请先选择照片。"),
    "needs_prompt": ("Write what should happen in the video.", "请填写画面中会发生什么。"),
    "not_known": (
        "The demo model knows no word of this prompt and will only zoom in gently. It follows: {words}",
        "演示模型不认识这个提示词，只会缓慢推近。它能理解：{words}",
    ),
    "not_english": (
        "The model was trained on English; other languages are followed poorly.",
        "模型以英文训练，其他语言效果较差，建议使用英文。",
    ),
    "too_long": (
        "About {n} tokens: the model reads the first 77, the rest is ignored.",
        "约 {n} 个词元：模型只读取前 77 个，其余会被忽略。",
    ),
    "crop_part": (
        "The middle {width} × {height} of {wide} × {high} pixels is used.",
        "使用照片中央 {width} × {height}（共 {wide} × {high}）。",
    ),
    "crop_padded": (
        "The whole photo is used, with black borders to {width} × {height}.",
        "使用整张照片，加黑边至 {width} × {height}。",
    ),
    "crop_as_is": ("The whole photo is used.", "使用整张照片。"),
    # Stage
    "empty_title": ("Your video appears here", "视频将显示在这里"),
    "empty_text": (
        "Choose a photo, say what should happen, and press Generate video.",
        "选择照片，描述画面，然后点击“生成视频”。",
    ),
    "queued_next": ("Next in the queue", "排在队列首位"),
    "queued_at": ("{n} before you in the queue", "前面还有 {n} 个任务"),
    "queued_loading": ("Waiting for the model to load", "正在等待模型加载"),
    "stage_encode": ("Reading the photo and the prompt", "正在读取照片与提示词"),
    "stage_denoise": ("Step {step} of {steps}", "第 {step} / {steps} 步"),
    "stage_decode": ("Decoding frames", "正在解码画面"),
    "stage_write": ("Writing the video", "正在写入视频"),
    "stage_start": ("Starting", "正在开始"),
    "eta": ("about {time} left", "约剩 {time}"),
    "done": ("Done", "完成"),
    "failed_title": ("No video this time", "这次没有生成视频"),
    "cancelled_title": ("Cancelled", "已取消"),
    "cancelled_text": ("Nothing was kept. The settings are still here.", "没有保留任何内容，设置仍在。"),
    "gone_title": ("This job is no longer here", "该任务已不存在"),
    "gone_text": ("It was deleted, or it never existed on this server.", "它已被删除，或从未在此服务器上存在。"),
    "fits": (
        "This does not fit into the memory that is free now. {width} × {height} with {num_frames} frames would.",
        "当前可用内存不足。可改用 {width} × {height}、{num_frames} 帧。",
    ),
    "preview_alt": ("Preview of the running job", "任务预览"),
    "video_label": ("Generated video", "生成的视频"),
    # Seed sweep
    "sweep": ("Try four seeds", "试四个种子"),
    "sheet_wait": ("Four drafts at few steps: {done} of {all} are there", "四个低步数草稿：已完成 {done} / {all}"),
    "sheet_choose": ("Which one? Run it in full, or open it by a click.", "选择一个完整生成，或点击查看。"),
    "sheet_full": ("Run in full", "完整生成"),
    "sheet_back": ("All four drafts", "返回四个草稿"),
    # Result
    "advice": ("Worth a look", "建议"),
    "fact_plan": ("Memory plan", "内存方案"),
    "share_copied": ("Link copied", "链接已复制"),
    "took_encode": ("reading {n} s", "读取 {n} 秒"),
    "took_warm_up": ("warming up {n} s", "预热 {n} 秒"),
    "took_denoise": ("denoising {n} s", "去噪 {n} 秒"),
    "took_decode": ("decoding {n} s", "解码 {n} 秒"),
    "took_write": ("writing {n} s", "写入 {n} 秒"),
    "download": ("Download", "下载"),
    "fact_seed": ("Seed", "种子"),
    "fact_time": ("Time", "耗时"),
    "fact_size": ("Size", "尺寸"),
    "fact_length": ("Length", "长度"),
    "fact_settings": ("Settings", "设置"),
    "fact_model": ("Model", "模型"),
    "fact_file": ("File", "文件"),
    "fact_memory": ("Peak memory", "内存峰值"),
    "peak_gpu": ("{n} MB of the GPU", "显存 {n} MB"),
    "peak_cpu": ("{n} MB of the whole server", "整个服务器 {n} MB"),
    "fact_stages": ("By stage", "各阶段"),
    "frames_at": ("{frames} frames at {fps} fps, {seconds} s", "{frames} 帧，{fps} fps，{seconds} 秒"),
    "steps_guidance": (
        "{steps} steps, guidance {guidance}, preset {preset}",
        "{steps} 步，引导 {guidance}，预设 {preset}",
    ),
    "what_next": ("Use these settings", "使用这些设置"),
    "extend": ("Extend from the last frame", "从最后一帧继续"),
    "share": ("Link to this video", "分享链接"),
    "settings_taken": ("The settings of this video are in the form.", "已填入该视频的设置。"),
    "delete": ("Delete", "删除"),
    "delete_sure": ("Delete for good?", "确定删除？"),
    "delete_yes": ("Yes, delete", "删除"),
    "delete_no": ("Keep it", "保留"),
    "delete_unfinished": (
        "This job has not ended; cancel it first.",
        "该任务尚未结束，请先取消。",
    ),
    "deleted": ("The video was deleted.", "视频已删除。"),
    "nothing_chosen": ("There is no finished video to take this from.", "没有可用的已完成视频。"),
    "line_title": ("Also in the queue", "队列中的其他任务"),
    # History
    "history_search": ("Search prompts", "搜索提示词"),
    "history_empty": (
        "No videos yet. The first one you make appears here.",
        "还没有视频。生成的第一个视频会显示在这里。",
    ),
    "history_none": ("No video has “{search}” in its prompt.", "没有提示词包含“{search}”的视频。"),
    "history_more": ("Show more", "显示更多"),
    "history_open": ("Open the video “{prompt}”", "打开视频“{prompt}”"),
    "restore": ("Restore settings from an MP4", "恢复设置：拖入由此生成的 MP4"),
    "restore_none": (
        "This file carries no settings. Only MP4 files made by i2v do.",
        "此文件不含设置信息，只有 i2v 生成的 MP4 才有。",
    ),
    "restore_done": ("The settings of this file are in the form.", "已填入该文件的设置。"),
    "restore_no_photo": (
        "The settings of this file are in the form; its photo is not on this server.",
        "已填入该文件的设置；其照片不在此服务器上。",
    ),
    "card_delete": ("Delete", "删除"),
    "card_delete_name": ("Delete the video “{prompt}”", "删除视频“{prompt}”"),
    # System
    "sys_state": ("State", "状态"),
    "state_loading": ("loading", "加载中"),
    "state_ready": ("ready", "就绪"),
    "state_failed": ("no model", "无模型"),
    "state_stopping": ("stopping", "正在关闭"),
    "state_dead": ("restarting", "正在重启"),
    "sys_device": ("Device", "设备"),
    "sys_dtype": ("Precision", "精度"),
    "sys_queue": ("Queue", "队列"),
    "sys_queue_of": ("{n} waiting; it takes up to {most}", "{n} 个任务等待，最多容纳 {most} 个"),
    "sys_average": ("Mean time a video", "平均耗时"),
    "sys_memory": ("Memory of the server", "服务器内存"),
    "sys_storage": ("Storage", "存储"),
    "storage_good": ("writable", "可写"),
    "storage_bad": ("not writable or full", "不可写或已满"),
    "sys_free": ("Memory a job may have", "任务可用内存"),
    "sys_words": ("Prompts it knows", "支持的提示词"),
    "sys_api": ("The same job from a program", "用程序完成同样的任务"),
    "sys_api_note": (
        "Filled in with the settings of the form. All doors share one queue.",
        "已填入当前表单的设置。所有入口共用一个队列。",
    ),
    "title_demo": (
        "Demo model (small, zooms into a photo, pans over it and changes its light; not I2VGen-XL)",
        "演示模型（小型：推近、平移照片，改变光线；并非 I2VGen-XL）",
    ),
    "title_fake": ("Fake engine (test pattern, no model)", "假引擎（测试图案，并非模型）"),
    # Words of the engine and of errors. English shows them as they are; Chinese explains them first.
    "note_demo": (
        "This is the small demo model that ships with i2v. It zooms and pans over the photo or changes its light. "
        "The full I2VGen-XL model adds real motion, detail and free prompts; it needs a CUDA GPU.",
        "这是随 i2v 附带的小型演示模型，只能推拉、平移画面或改变光线，画面偏柔和。"
        "完整的 I2VGen-XL 模型有真实的动作与细节，需要 CUDA 显卡。",
    ),
    "note_real": ("{note}", "模型说明：{note}"),
    "error_queue_full": ("{message}", "队列已满，请稍后再试。（{message}）"),
    "error_too_many_jobs": ("{message}", "您排队的任务过多，请等其中一个完成。（{message}）"),
    "error_not_ready": ("{message}", "服务器尚未就绪，请稍候。（{message}）"),
    "error_storage_full": ("{message}", "磁盘空间不足。（{message}）"),
    "error_out_of_memory": ("{message}", "显存或内存不足，请改用更小的尺寸或更少的帧数。（{message}）"),
    "error_does_not_fit": ("{message}", "内存不足，无法运行此任务。（{message}）"),
    "error_invalid_image": ("{message}", "无法使用这张图片。（{message}）"),
    "error_invalid_request": ("{message}", "设置有误：{message}"),
    "error_invalid_output": ("{message}", "模型的输出无效。（{message}）"),
    "error_generation_failed": ("{message}", "生成失败。（{message}）"),
    "error_interrupted": ("{message}", "任务被中断。（{message}）"),
    "error_engine_lost": ("{message}", "模型已停止工作，服务器正在重启。（{message}）"),
    "error_not_found": ("{message}", "找不到该任务或视频。（{message}）"),
    "error_conflict": ("{message}", "当前状态下无法执行此操作。（{message}）"),
    "error_unavailable": ("{message}", "服务器暂时无法处理，请稍后再试。（{message}）"),
    "error_video_lost": ("{message}", "视频文件已不在服务器上。（{message}）"),
    # Durations
    "seconds": ("{n} s", "{n} 秒"),
    "minutes": ("{m} min {s} s", "{m} 分 {s} 秒"),
    "hours": ("{h} h {m} min", "{h} 小时 {m} 分"),
}


def translations(written: Mapping[str, tuple[str, str]]) -> gr.I18n:
    """Gradio's table, with what is `written` for this server; both Chinese codes, because browsers send either."""
    table = {**TABLE, **written}
    en = {key: pair[0] for key, pair in table.items()}
    zh = {key: pair[1] for key, pair in table.items()}
    return gr.I18n(**{"en": en, "zh": zh, "zh-CN": zh, "zh-TW": zh})


def label(key: str) -> I18nData:
    """A label that the browser translates; a key that is not in the table is a programmer's error."""
    if key not in TABLE:
        raise KeyError(key)
    return I18nData(key)


def language(request: gr.Request | None) -> Language:
    """The first language of `Accept-Language` decides, as the browser's own labels do."""
    accepted = "" if request is None else str(request.headers.get("accept-language", ""))
    return "zh" if accepted.lstrip().lower().startswith("zh") else "en"


@dataclass(frozen=True, slots=True)
class Say:
    """Says texts of the table, and the engine's notes, in one language."""

    language: Language

    def __call__(self, key: str, **values: object) -> str:
        return TABLE[key][self.language == "zh"].format(**values)

    def note(self, note: Note | str) -> str:
        return notes.say(note, self.language)


def speaker(lang: Language) -> Say:
    return Say(lang)


class PageRefusal(InvalidRequest):
    """What the page itself refuses, in the reader's language."""


def explained(say: Say, code: str, message: str) -> str:
    """An error's own sentence; in Chinese what kind of error it is before it."""
    key = f"error_{code}"
    return say(key, message=message) if key in TABLE else message


def told(say: Say, error: I2VError) -> str:
    """Why something was refused, in the reader's language; for a job that does not fit, what would."""
    if isinstance(error, DoesNotFit) and error.largest:
        return say("fits", **error.largest)
    if error.note is not None:
        return say.note(error.note)
    return error.message if isinstance(error, PageRefusal) else explained(say, error.code, error.message)


def titled(say: Say, kind: str, title: str) -> str:
    """A model's title; that of the demo model and of the fake engine in the reader's language."""
    return title if kind == "real" or say.language == "en" else say(f"title_{kind}")


def about(say: Say, model: ModelInfo) -> str:
    """What a model is not, in a sentence; empty where there is nothing to say."""
    if model.kind == "fake":
        return say.note(Note("fake_engine"))
    return say(f"note_{model.kind}", note=model.note) if model.note else ""


def duration(say: Say, seconds: float) -> str:
    """8 s, 2 min 5 s, 1 h 4 min: never more digits than the estimate deserves."""
    whole = max(1, round(seconds))
    if whole < 60:
        return say("seconds", n=whole)
    if whole < 3600:
        return say("minutes", m=whole // 60, s=whole % 60)
    return say("hours", h=whole // 3600, m=whole % 3600 // 60)
