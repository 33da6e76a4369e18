"""The web page: Gradio Blocks that only submit and watch jobs, through the same functions as the routes.

`i2v.ui.mount.mounting.mount_ui` adds it to the app.
"""
