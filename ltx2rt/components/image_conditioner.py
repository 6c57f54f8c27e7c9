"""Images to conditioning items, encoded at the stage's resolution (spec/conditioning.md §3)."""

from __future__ import annotations

from collections.abc import Sequence

from ltx2rt.components.video_encoder import VideoEncoder
from ltx2rt.conditioning import ConditioningItem, Keyframe, ReplaceLatent
from ltx2rt.config import ImageCondition
from ltx2rt.media.image import image_to_vae_input


def image_items(
    images: Sequence[ImageCondition],
    encoder: VideoEncoder,
    height: int,
    width: int,
    default_crf: int,
    *,
    guiding: bool = False,
) -> list[ConditioningItem]:
    """Encode images for one stage, in the order given.

    An image at frame 0 replaces the first latent frame; any other is appended as a keyframe.

    Args:
        images: what the user asked for.
        encoder: of the bundle.
        height, width: pixels of the stage.
        default_crf: compression of images that name none (a fact of the model version).
        guiding: append every image as a keyframe.
    """
    items: list[ConditioningItem] = []
    for image in images:
        crf = default_crf if image.crf is None else image.crf
        latent = encoder.encode(image_to_vae_input(image.path, height, width, crf))
        if image.frame == 0 and not guiding:
            items.append(ReplaceLatent(latent=latent, strength=image.strength))
        else:
            items.append(Keyframe(latent=latent, frame_index=image.frame, strength=image.strength))
    return items
