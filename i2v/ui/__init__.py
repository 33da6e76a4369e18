"""The web page: Gradio Blocks that only submit and watch jobs, through the same functions as the routes."""

from i2v.ui.mount.app import mount_ui

__all__ = ["mount_ui"]
