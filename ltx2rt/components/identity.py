"""Identity guidance: a voice nearer to the one that is shown as a reference.

At every step the sound is estimated once more without its reference tokens, and the difference that
they make is added as many times as asked for: `x + s (x_with - x_without)`, the sound of the clip
alone. It is how the ID-LoRA of LTX-2.3 is sampled.
"""

from __future__ import annotations

import numpy as np

from ltx2rt.components.denoisers import simple_denoise
from ltx2rt.components.text_encoder import TextContext
from ltx2rt.components.transformer import Transformer
from ltx2rt.engine import Array
from ltx2rt.latents.state import LatentState, drop_appended
from ltx2rt.latents.streams import Streams
from ltx2rt.sampling.samplers import Denoise, Sigma


def identity_denoise(
    inner: Denoise,
    transformer: Transformer,
    states: Streams[LatentState],
    context: TextContext,
    scale: float,
    *,
    guided: bool,
) -> Denoise:
    """`inner` with identity guidance; one more pass a step, or two where `inner` is guided.

    Args:
        inner: how a step is estimated otherwise.
        states: of the stage; those of the sound have reference tokens behind the clip's.
        context: of the prompt.
        scale: how often the difference is added; 0 changes nothing.
        guided: whether `inner` gives anything else than the pass with the prompt.
    """
    sound = states.audio
    assert sound is not None
    bare = simple_denoise(transformer, Streams(states.video, drop_appended(sound)), context)
    plain = simple_denoise(transformer, states, context)
    count = sound.target_count

    def denoise(latents: Streams[Array], sigma: Sigma, index: int) -> Streams[Array]:
        found = inner(latents, sigma, index)
        assert found.audio is not None
        assert latents.audio is not None
        known = plain(latents, sigma, index).audio if guided else found.audio
        without = bare(Streams(latents.video, latents.audio[:, :count]), sigma, index).audio
        assert known is not None
        assert without is not None
        audio = found.audio.copy()
        audio[:, :count] += np.float32(scale) * (known[:, :count] - without)
        return Streams(found.video, audio)

    return denoise
