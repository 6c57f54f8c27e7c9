"""From a first image to a last one; images may be files, or of Pillow, or arrays."""

from PIL import Image

import ltx2rt

first = Image.open("first.png").convert("RGB")
last = ltx2rt.ImageCondition(path=ltx2rt.image_file(first.rotate(180)), frame=8, strength=0.8)
with ltx2rt.DistilledPipeline(ltx2rt.open_bundle("ltx23.bundle")) as pipe:
    pipe(prompt="The picture turns around.", images=[first, last]).save("turned.mp4")
