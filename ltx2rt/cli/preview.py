"""`--preview FILE`: a small clip of what is being made, written anew while it is sampled."""

from __future__ import annotations

from pathlib import Path

from ltx2rt.progress import Preview


class PreviewWriter:
    """Writes every preview over the one before: the file is always a whole one.

    Args:
        path: `.gif` or `.webp`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, preview: Preview) -> None:
        from ltx2rt.media.animation import write_animation
        from ltx2rt.results.preview import enlarged, preview_rate, preview_text

        frames = enlarged(preview.frames)
        rate, text = preview_rate(preview), preview_text(preview)
        write_animation(self._path, [frames], len(frames), rate, text)


def check_preview(path: Path) -> None:
    """Refuse a file that is no animation, or that cannot be written.

    Raises:
        MediaError: says why.
    """
    from ltx2rt.media.files import check_output_path

    check_output_path(path, "animation")
