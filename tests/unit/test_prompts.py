"""Prompts: from files, and the negative one that nobody names."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from ltx2rt.cli import generate as generate_command
from ltx2rt.cli.job_file import read_job
from ltx2rt.config import DEFAULT_NEGATIVE_PROMPT


def generate_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    generate_command.add_arguments(parser)
    return parser


def test_prompts_come_from_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompt.txt").write_text("a lake\nat dawn\n", encoding="utf-8")
    arguments = ["b", "-o", "x.mp4", "--prompt", f"@{tmp_path / 'prompt.txt'}"]
    assert generate_parser().parse_args(arguments).prompt == "a lake\nat dawn"
    for name, text in (("--prompt", "No such file"), ("--negative-prompt", "No such file")):
        with pytest.raises(SystemExit):
            generate_parser().parse_args(["b", name, f"@{tmp_path / 'absent'}"])
        assert text in capsys.readouterr().err
    (tmp_path / "prompt.txt").write_bytes(b"\xff")
    with pytest.raises(SystemExit):
        generate_parser().parse_args(arguments)
    assert "prompt.txt': it is not UTF-8 text" in capsys.readouterr().err
    job = tmp_path / "job.json"
    job.write_text('{"prompt": "@words.txt", "output": "x.mp4"}', encoding="utf-8")
    (tmp_path / "words.txt").write_text("rain", encoding="utf-8")
    assert read_job(job)[0]["prompt"] == "rain"  # beside the job


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
