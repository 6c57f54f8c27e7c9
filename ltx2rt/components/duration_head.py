"""How long a clip should be, from its prompt (LTX-2.5; spec/duration_head.md)."""

from __future__ import annotations

from ltx2rt.components.text_encoder import TextContext
from ltx2rt.engine import Engine


class DurationHead:
    """Predicts seconds. The engine is `duration_head`; it is closed by its owner."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __call__(self, context: TextContext, *, audio_only: bool = False) -> float:
        """Seconds for the first prompt of `context`.

        Args:
            context: contexts of the prompt.
            audio_only: look at the audio context alone. The head pools over all tokens it gets,
                so leaving the video's out is giving none.
        """
        video = context.video[:1, :0] if audio_only else context.video[:1]
        seconds = self._engine({"video_context": video, "audio_context": context.audio[:1]})
        return float(seconds["seconds"][0])
