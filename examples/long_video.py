"""Segments that go on from each other, cross-faded; one window in memory, kept to resume."""

import ltx2rt

TEXTS = ["A path into a forest.", "The forest opens to a lake."]
segments = [
    ltx2rt.Segment(config=ltx2rt.GenerationConfig(prompt=text, num_frames=25)) for text in TEXTS
]
frames = ltx2rt.make_long(
    ltx2rt.open_bundle("ltx23.bundle"), segments, "walk.mp4", "walk.work", overlap=9, resume=True
)
print(frames, "frames")
