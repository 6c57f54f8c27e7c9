"""The HTTP door: the video API that clients speak, and a page."""
