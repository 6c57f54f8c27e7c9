"""Latents kept and decoded later, with other tiles, without sampling again."""

import ltx2rt

bundle = ltx2rt.open_bundle("ltx23.bundle")
with ltx2rt.DistilledPipeline(bundle) as pipe:
    pipe(prompt="A train passes.").save_latents("train.safetensors")
with ltx2rt.open_latents(bundle, "train.safetensors", tiling="64x16:32x8") as clip:
    clip.save("train.mkv", encoding=ltx2rt.VideoEncoding(codec="ffv1"))
