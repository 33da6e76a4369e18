"""A job in words: the readable lines that `/api/predict/`, the UI and the command line show for a finished video."""

from i2v.jobs.job import Job
from i2v.notes import say


def summary(job: Job) -> str:
    """Parameters, seed, size, model, plan and notes, one a line."""
    request, result = job.request, job.result
    lines = [
        f"Prompt: {request.prompt}",
        f"Size: {request.width}x{request.height}, {request.num_frames} frames at {request.fps} fps "
        f"({request.num_frames / request.fps:.1f} s)",
    ]
    if request.negative_prompt:
        lines.insert(1, f"Negative prompt: {request.negative_prompt}")
    guidance = request.guidance_scale if result is None else result.guidance_scale
    lines.append(f"Steps: {request.steps}, guidance scale: {guidance:g}, preset: {request.preset}")
    lines.append(f"Motion fps: {request.motion_fps}, photo: {request.fit}")
    lines.append(f"Seed: {request.seed if result is None else result.seed}")
    if result is not None:
        lines.append(f"Model: {result.model_title} ({result.model}) on {result.device}")
        stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result.stage_seconds.items())
        lines.append(f"Time: {result.seconds:.1f} s ({stages})")
        if result.peak_memory_mb is not None:
            lines.append(f"Peak memory: {result.peak_memory_mb:.0f} MB")
        if result.plan:
            lines.append(f"Memory plan: {say(result.plan)}")
        lines += [f"Note: {say(note)}" for note in result.notes]
        lines += [f"Warning: {say(warning)}" for warning in result.warnings]
    elif job.error_message:
        lines.append(f"Error: {job.error_message} ({job.error_code})")
    return "\n".join(lines)
