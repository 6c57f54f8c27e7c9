"""Prompts: from files, and the negative one that nobody names."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from ltx2rt.cli.common import text_or_file
from ltx2rt.cli.job_file import dump_job, read_job
from ltx2rt.config import DEFAULT_NEGATIVE_PROMPT
from tests.unit.command_flags import given_by


def test_prompts_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("a lake\nat dawn\n", encoding="utf-8")
    given = given_by("--prompt", f"@{tmp_path / 'prompt.txt'}")
    assert given["prompt"] == "a lake\nat dawn"
    with pytest.raises(argparse.ArgumentTypeError, match="No such file"):
        text_or_file(f"@{tmp_path / 'absent'}")
    (tmp_path / "prompt.txt").write_bytes(b"\xff")
    with pytest.raises(argparse.ArgumentTypeError, match=r"prompt.txt': it is not UTF-8 text"):
        text_or_file(f"@{tmp_path / 'prompt.txt'}")


def test_a_file_of_a_job_lies_beside_it_and_texts_survive_a_job(tmp_path: Path) -> None:
    job = tmp_path / "job.json"
    (tmp_path / "words.txt").write_text("rain", encoding="utf-8")
    job.write_text('{"prompt": "@words.txt"}', encoding="utf-8")
    assert read_job(job)[0]["prompt"] == "rain"
    for text in ("@home at last", "@@", "plain"):
        dump_job(job, {"prompt": text}, None)
        assert read_job(job)[0]["prompt"] == text


#: what the official negative prompt is about (spec/pipelines.md §0.8) -> words that say so in ours
ARTEFACTS = {
    "subtitles": "captions", "blurred boxes": "censored", "black transitions": "fade to black",
    "speech that ends early": "stops too early", "blur": "unsharp", "exposure": "too dark",
    "contrast": "dull", "washed out": "faded", "noise": "sensor noise", "grain": "grain",
    "lighting": "lamps", "flicker": "pulsing", "motion blur": "smeared",
    "proportions": "proportion",
    "skin": "complexion", "features": "melting", "asymmetry": "lopsided", "missing": "gone",
    "limbs": "arms or legs", "hands": "fingers", "hand count": "too many hands",
    "text": "broken letters", "perspective": "vanishing", "shake": "wobbling", "depth": "distance",
    "sharp background": "needle-sharp", "clutter": "crowded", "reflections": "mirrors",
    "shadows": "shadows", "light direction": "several sides", "banding": "stripes",
    "cartoon": "drawn", "CGI": "rendered", "materials": "rubber", "uncanny": "mannequin",
    "ethnicity and gender": "sex or origin", "expressions": "overacting", "gaze": "look elsewhere",
    "lip sync": "lips", "silence": "no sound", "muted": "muffled", "distorted voice": "garbled",
    "robotic voice": "machine-like", "echo": "reverberation", "background noise": "hum",
    "off-sync": "ahead of the picture", "incorrect dialogue": "wrong lines",
    "added dialogue": "nobody asked", "repetition": "said twice", "jitter": "stutter",
    "pauses": "gaps", "timing": "wrong moment", "transitions": "jumping cuts", "framing": "frame",
    "tilt": "horizon", "flat light": "without depth", "tone": "mood", "saturation": "gaudy",
    "filters": "effects", "AI artifacts": "glitches",
}  # fmt: skip


def test_the_negative_prompt_covers_every_artefact_in_our_own_words() -> None:
    missing = [what for what, said in ARTEFACTS.items() if said not in DEFAULT_NEGATIVE_PROMPT]
    assert missing == []
    phrases = DEFAULT_NEGATIVE_PROMPT.split(", ")
    assert len(phrases) == len(set(phrases)) > 60
