"""Images to conditioning items, encoded at the stage's resolution (spec/conditioning.md §3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ltx2rt.components.video_encoder import VideoEncoder
from ltx2rt.config import ImageCondition
from ltx2rt.engine import Array
from ltx2rt.latents.conditioning import ConditioningItem, Keyframe, ReplaceLatent
from ltx2rt.media.exr import is_exr, read_exr
from ltx2rt.media.hdr import HdrFormat, codes_to_vae_input
from ltx2rt.media.image import fill, image_to_vae_input


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedImage:
    """An image as a latent `[1, C, 1, H, W]`, to be shown at a pixel frame."""

    latent: Array
    frame: int
    strength: float

    def item(self, *, guiding: bool = False) -> ConditioningItem:
        """As conditioning: at frame 0 it replaces the first latent frame, unless `guiding`; else it
        is appended as a keyframe.
        """
        if self.frame == 0 and not guiding:
            return ReplaceLatent(latent=self.latent, strength=self.strength)
        return Keyframe(latent=self.latent, frame_index=self.frame, strength=self.strength)


def encode_images(
    images: Sequence[ImageCondition],
    encoder: VideoEncoder,
    height: int,
    width: int,
    shown: tuple[int, int],
    default_crf: int,
    hdr: HdrFormat | None = None,
) -> list[EncodedImage]:
    """Encode images for one stage, in the order given.

    Args:
        images: what the user asked for.
        encoder: of the bundle.
        height, width: pixels of the stage.
        shown: height and width of the part of them that ends up in the clip, see `fill`.
        default_crf: compression of images that name none (a fact of the model version); EXR files
            are not compressed.
        hdr: what EXR files hold.
    """
    encoded = []
    for image in images:
        crf = default_crf if image.crf is None else image.crf
        if hdr is not None and is_exr(image.path):
            light = fill(read_exr(image.path)[None], height, width, shown)
            pixels = codes_to_vae_input(hdr.encode(light))
        else:
            pixels = image_to_vae_input(image.path, height, width, crf, shown)
        latent = encoder.encode(pixels)
        encoded.append(EncodedImage(latent=latent, frame=image.frame, strength=image.strength))
    return encoded
