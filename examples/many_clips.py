"""Several prompts with two seeds each, and what made each clip."""

import ltx2rt

PROMPTS = ["Rain on a tin roof.", "Snow on a pine."]
runtime = ltx2rt.RuntimeConfig(residency="resident")
with ltx2rt.DistilledPipeline(ltx2rt.open_bundle("ltx23.bundle"), runtime) as pipe:
    for number, clip in enumerate(pipe.generate_many(prompts=PROMPTS, num_videos=2, seed=7)):
        clip.save(f"clip-{number}.mp4")
        print(number, clip.config.prompt, clip.config.seed)
request = ltx2rt.record_in("clip-3.mp4").request
print("the last one again:", request.config.prompt, request.config.seed)
