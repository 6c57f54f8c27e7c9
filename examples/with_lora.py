"""One LoRA at several strengths; engines stay loaded, and weights are merged anew."""

import ltx2rt

runtime = ltx2rt.RuntimeConfig(residency="resident")
with ltx2rt.DistilledPipeline(ltx2rt.open_bundle("ltx23.bundle"), runtime) as pipe:
    for strength in (0.5, 1.0):
        style = ltx2rt.Lora(path="style.safetensors", strength=strength)
        pipe(prompt="A lake at dawn.", loras=[style]).save(f"style-{strength}.mp4")
