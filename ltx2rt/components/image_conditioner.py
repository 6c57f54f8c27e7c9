"""Images to conditioning items, encoded at the stage's resolution (spec/conditioning.md §3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ltx2rt.components.video_encoder import VideoEncoder
from ltx2rt.config import ImageCondition
from ltx2rt.engine import F32, Array
from ltx2rt.errors import OptionError
from ltx2rt.latents.conditioning import ConditioningItem, Keyframe, ReplaceLatent
from ltx2rt.latents.shapes import VIDEO_SCALE_FACTORS, VideoPixelShape
from ltx2rt.media.exr import is_exr, read_exr
from ltx2rt.media.files import is_video
from ltx2rt.media.hdr import HdrFormat, codes_to_vae_input
from ltx2rt.media.image import fill, image_to_vae_input, to_vae_input
from ltx2rt.media.reader import iterate_video_frames


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedImage:
    """An image as a latent `[1, C, 1, H, W]`, or a video of several frames, to be shown from a
    pixel frame on.
    """

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
    clip: VideoPixelShape,
    hdr: HdrFormat | None = None,
) -> list[EncodedImage]:
    """Encode images for one stage, in the order given.

    Args:
        images: what the user asked for.
        encoder: of the bundle.
        height, width: pixels of the stage.
        shown: height and width of the part of them that ends up in the clip, see `fill`.
        default_crf: compression of images that name none (a fact of the model version); EXR files
            and videos are not compressed.
        clip: the clip that they are for: a video is shown at its frame rate, as many frames
            (`8k+1`) as it has and the clip has from there on.
        hdr: what EXR files hold.
    """
    encoded = []
    for image in images:
        crf = default_crf if image.crf is None else image.crf
        if hdr is not None and is_exr(image.path):
            light = fill(read_exr(image.path)[None], height, width, shown)
            pixels = codes_to_vae_input(hdr.encode(light))
        elif is_video(image.path):
            pixels = video_pixels(image, height, width, shown, clip)
        else:
            pixels = image_to_vae_input(image.path, height, width, crf, shown)
        latent = encoder.encode(pixels)
        encoded.append(EncodedImage(latent=latent, frame=image.frame, strength=image.strength))
    return encoded


def video_pixels(
    image: ImageCondition, height: int, width: int, shown: tuple[int, int], clip: VideoPixelShape
) -> F32:
    """A short video as the encoder takes it, `[1, 3, n, H, W]`; arguments as of `encode_images`.

    Raises:
        MediaError: it cannot be read.
        OptionError: its frames, or those of the clip from there on, are fewer than two latent ones.
    """
    most = clip.num_frames - image.frame
    frames = list(iterate_video_frames(image.path, most, clip.frame_rate))
    count = (len(frames) - 1) // VIDEO_SCALE_FACTORS.time * VIDEO_SCALE_FACTORS.time + 1
    if count < 2:
        raise OptionError(
            f"video {image.path} has {len(frames)} frames to show from frame {image.frame} on; it "
            "takes 9 or more. Show an image, or place it earlier."
        )
    fitted = [fill(frame[None], height, width, shown) for frame in frames[:count]]
    return to_vae_input(np.concatenate(fitted))
