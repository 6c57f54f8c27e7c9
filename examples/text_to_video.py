"""A prompt to a clip with sound."""

import ltx2rt

bundle = ltx2rt.open_bundle("ltx23.bundle")
with ltx2rt.DistilledPipeline(bundle) as pipe:
    clip = pipe(prompt="A lighthouse at dusk, waves, a distant bell.", seed=42)
    clip.save("lighthouse.mp4")
    print(f"{clip.num_frames} frames of {clip.width}x{clip.height}")
