"""A part of a video made anew, the rest left alone; then all of it at twice the size."""

import ltx2rt

bundle = ltx2rt.open_bundle("ltx23.bundle")
with ltx2rt.RetakePipeline(bundle) as retake:
    clip = retake(prompt="It begins to snow.", video="in.mp4", start_time=0.1, end_time=0.3)
    clip.save("snow.mp4")
with ltx2rt.UpscalePipeline(bundle) as upscale:
    upscale(source="snow.mp4").save("snow-large.mp4")
