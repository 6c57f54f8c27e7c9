"""`python -m tests.defaults_page` writes `docs/defaults.md`: every default beside the official
command's, which are data (`tests/official_defaults.toml`).
"""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ltx2rt.cli.common import parse_lora
from ltx2rt.components.reference_conditioner import ReferenceFile
from ltx2rt.config import (
    DEFAULT_NEGATIVE_PROMPT,
    DISTILLED_STRENGTHS,
    GenerationConfig,
    GuidanceConfig,
    ImageCondition,
    RuntimeConfig,
)
from ltx2rt.latents.duration import AutoDuration
from ltx2rt.names import DURATION_HEAD, VIDEO_DECODER
from ltx2rt.pipelines.base import pipeline_class
from ltx2rt.pipelines.catalog import PIPELINES
from ltx2rt.pipelines.guided import GuidedPipeline

PAGE = Path(__file__).parents[1] / "docs/defaults.md"
DATA = Path(__file__).with_name("official_defaults.toml")

#: version -> what a checkpoint of it says: steps, STG block, image CRF
VERSIONS = {"LTX-2": (40, 29, 33), "LTX-2.3": (30, 28, 33), "LTX-2.5": (30, 28, 18)}
#: of the published models
BLOCKS = 48

#: what a pipeline takes from the file that it is given
FROM_SOURCE = {
    "retake": ("height", "width", "num_frames", "frame_rate"),
    "dub-it": ("num_frames", "frame_rate"),
    "hdr-ic-lora": ("height", "width", "num_frames", "frame_rate"),
}

HEAD = """# Defaults

Every argument that both have, beside the official command of that pipeline; made from
`tests/official_defaults.toml` and our code by `python -m tests.defaults_page`. Values of several
model versions stand as LTX-2 / LTX-2.3 / LTX-2.5. A difference says why it is one.
`retake-guided`, `retake-two-stage`, `ic-lora-guided` and `upscale` are ours alone; the
quantisation, offload, compile and decoder modes of the official commands are choices of `ltx2rt
build` here.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One argument: shown values, and why they differ."""

    argument: str
    official: str
    ours: str
    why: str


def source_of(version: str) -> Any:
    """A bundle of a published model, as far as defaults ask; LTX-2.5 with its duration head."""
    steps, block, crf = VERSIONS[version]
    held = {VIDEO_DECODER, *([DURATION_HEAD] if version == "LTX-2.5" else [])}
    return SimpleNamespace(
        has=lambda *names: held.issuperset(names),
        model=SimpleNamespace(
            num_inference_steps=steps, stg_block=block, image_crf=crf, is_distilled=False
        ),
        options=lambda name: {"num_layers": BLOCKS},
    )


def ours(name: str, version: str) -> dict[str, Any]:
    """Our defaults of a pipeline, those of the command line."""
    cls, source = pipeline_class(name), source_of(version)
    known = {"audio": Path("a.wav")} if name == "audio-to-video" else {}
    given = {**cls.defaults(None, known), **cls.command_defaults(source.has)}
    config = GenerationConfig(prompt="a", **given)
    found: dict[str, Any] = {
        "seed": config.seed,
        "frame_rate": config.frame_rate,
        "lora_strength": parse_lora("x.safetensors").strength,
        "image_strength": ImageCondition(path=Path("x.png")).strength,
        "image_crf": source.model.image_crf,
        "hdr": config.hdr or "off",
        "tiling": config.tiling,
        "max_batch_size": RuntimeConfig().max_batch_size,
        "enhance_prompt": "off",
        "height": config.height,
        "width": config.width,
        "num_frames": config.num_frames,
        "auto_duration": [AutoDuration().min_s, AutoDuration().max_s],
        "generated_keyframes": config.generated_keyframes,
        "reference_strength": ReferenceFile(path=Path("x.mp4")).strength,
    }
    if isinstance(found["num_frames"], AutoDuration):
        found["num_frames"] = "the sound's" if known else "automatic"
    if known:
        found |= {"audio_start_time": config.audio_start_time, "audio_max_duration": "the clip's"}
    for field in FROM_SOURCE.get(name, ()):
        found[field] = "the source's"
    if cls.Inputs is not None:
        found |= {f.name: f.default for f in dataclasses.fields(cls.Inputs)}
    found["detailing_lora_strength"] = parse_lora("x.safetensors").strength
    if issubclass(cls, GuidedPipeline):
        found |= guidance_of(cls, source)
    return found


def guidance_of(cls: type[GuidedPipeline], source: Any) -> dict[str, Any]:
    """Defaults of guidance, filled in as a request's are."""
    pipe = object.__new__(cls)
    pipe.engines = SimpleNamespace(source=source)
    filled = pipe.with_defaults(GuidanceConfig())
    assert filled.negative_prompt == DEFAULT_NEGATIVE_PROMPT
    count = len(DEFAULT_NEGATIVE_PROMPT.split(", "))
    first, second = filled.distilled_strengths or DISTILLED_STRENGTHS
    found: dict[str, Any] = {
        "negative_prompt": f"our own list of {count}",
        "num_inference_steps": filled.num_inference_steps,
        "distilled_lora_strength": parse_lora("x.safetensors").strength,
        "distilled_lora_strength_stage_1": first,
        "distilled_lora_strength_stage_2": second,
    }
    for modality, params in (("video", filled.video), ("audio", filled.audio)):
        assert params is not None
        values = dataclasses.asdict(params)
        found |= {f"{modality}_{k}": list(v) if k == "stg_blocks" else v for k, v in values.items()}
    return found


def official(name: str) -> dict[str, Any]:
    """The official command's defaults; arguments that it lacks are left out."""
    data = tomllib.loads(DATA.read_text())
    guided = data["guided"] if pipeline_class(name).guided else {}
    merged = {**data["shared"], **guided, **data["pipeline"][name]}
    return {k: v for k, v in merged.items() if v != "-"}


def rows_of(name: str) -> list[Row]:
    """The arguments of a pipeline.

    Raises:
        LookupError: values differ and no decision says why.
    """
    decisions = tomllib.loads(DATA.read_text())["decisions"]
    mine = {version: ours(name, version) for version in VERSIONS}
    rows = []
    for argument, value in official(name).items():
        theirs = value if isinstance(value, dict) else dict.fromkeys(VERSIONS, value)
        own = {version: mine[version].get(argument, "-") for version in VERSIONS}
        why = ""
        if theirs != own:
            why = decisions.get(f"{argument}@{name}") or decisions.get(argument, "")
            if not why:
                raise LookupError(f"{argument} of {name} is {own}, officially {theirs}: why?")
        rows.append(Row(argument, shown(theirs), shown(own), why))
    return rows


def shown(values: dict[str, Any]) -> str:
    """One text for all versions, or one each."""
    texts = [text_of(v) for v in values.values()]
    return texts[0] if len(set(texts)) == 1 else " / ".join(texts)


def text_of(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return " ".join(f"{v:g}" for v in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def pipelines() -> list[str]:
    """Those that have an official command."""
    known = tomllib.loads(DATA.read_text())["pipeline"]
    assert known.keys() <= PIPELINES.keys()
    return list(known)


def page() -> str:
    lines = [HEAD]
    for name in pipelines():
        lines += [f"## {name}", "", "| argument | official | ours | why |", "|---|---|---|---|"]
        lines += [f"| {r.argument} | {r.official} | {r.ours} | {r.why} |" for r in rows_of(name)]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
