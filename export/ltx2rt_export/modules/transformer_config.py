"""What a checkpoint says about its diffusion transformer: metadata, corrected by its tensors.

Keys and defaults: spec/transformer.md §2. Structure (which modules exist, widths) is read
from the tensors; metadata supplies what tensors cannot tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ltx2rt.errors import CheckpointError, UnsupportedError
from ltx2rt_export.component import TensorIndex

Modalities = Literal["av", "video", "audio"]
BLOCK = "transformer_blocks."

#: keys with one supported value; a missing key means that value
FIXED: dict[str, Any] = {
    "dropout": 0.0,
    "attention_bias": True,
    "num_vector_embeds": None,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "use_linear_projection": False,
    "only_cross_attention": False,
    "cross_attention_norm": True,
    "double_self_attention": False,
    "upcast_attention": False,
    "standardization_norm": "rms_norm",
    "norm_elementwise_affine": False,
    "qk_norm": "rms_norm",
    "positional_embedding_type": "rope",
    "use_audio_video_cross_attention": True,
    "share_ff": False,
    "av_cross_ada_norm": True,
    "use_middle_indices_grid": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    """One of the two token streams.

    Attributes:
        name: `video` or `audio`: the prefix of boundary tensors.
        prefix: of its weights: nothing for video, `audio_` for audio.
        width, head_dim: of hidden states and of its own attentions.
        in_channels, out_channels: of latent tokens.
        context_dim: width of the text context that its blocks read.
        caption_channels: width of the context before the caption projection; 0 without projection.
        max_pos: RoPE extent per axis (seconds; video: and pixels).
    """

    name: Literal["video", "audio"]
    width: int
    head_dim: int
    in_channels: int
    out_channels: int
    context_dim: int
    caption_channels: int
    ff_bias: bool
    prompt_adaln: bool
    max_pos: tuple[float, ...]

    @property
    def prefix(self) -> str:
        return "" if self.name == "video" else "audio_"


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """The transformer of LTX-2, 2.3 or 2.5, or one stream of it.

    Attributes:
        streams: video and / or audio, in this order.
        cross_head_dim: of the attentions between the streams.
        text_adaln: text attention is modulated too (9 table rows instead of 6).
        cross_timestep_scale: factor on sigma for the gates between the streams.
        keyframes_embedding: marked video tokens get a learned embedding.
    """

    streams: tuple[StreamConfig, ...]
    num_layers: int
    heads: int
    cross_head_dim: int
    eps: float
    theta: float
    timestep_scale: float
    cross_timestep_scale: float
    rope_type: Literal["split", "interleaved"]
    frequencies_precision: str
    gated: bool
    text_adaln: bool
    keyframes_embedding: bool

    @property
    def modalities(self) -> Modalities:
        return "av" if len(self.streams) == 2 else self.streams[0].name

    @property
    def adaln_rows(self) -> int:
        return 9 if self.text_adaln else 6

    def options(self) -> dict[str, Any]:
        """The facts that the runtime needs, as JSON values (`ltx2rt.components.transformer`)."""
        facts = asdict(self)
        streams = facts.pop("streams")
        for stream in streams:
            stream["max_pos"] = list(stream["max_pos"])
        return {
            **facts,
            "modalities": self.modalities,
            "cross_max_pos": [max(s.max_pos[0] for s in self.streams)],
            **{stream.pop("name"): stream for stream in streams},
        }

    @classmethod
    def from_checkpoint(
        cls, config: Mapping[str, Any], tensors: TensorIndex, modalities: Modalities = "av"
    ) -> TransformerConfig:
        """Read the configuration.

        Args:
            config: the `transformer` object of the metadata; may be empty.
            tensors: the checkpoint's tensors, `model.diffusion_model.` removed.
            modalities: which streams to keep; tensors of the other one need not exist.

        Raises:
            UnsupportedError: configuration values that this project does not implement; lists all.
            CheckpointError: tensors without which nothing can be said are missing.
        """
        names: tuple[Literal["video", "audio"], ...]
        names = ("video", "audio") if modalities == "av" else (modalities,)
        first = "" if "video" in names else "audio_"
        _require(tensors, names)
        block = f"{BLOCK}0."
        problems = _fixed_problems(config)
        heads = config.get("num_attention_heads")
        audio_heads = config.get("audio_num_attention_heads", heads)
        gate = tensors.get(f"{block}{first}attn1.to_gate_logits.weight")
        if heads is None:
            heads = gate.shape[0] if gate is not None else 32
            audio_heads = config.get("audio_num_attention_heads", heads)
        if heads != audio_heads:
            problems.append(
                f"audio_num_attention_heads={audio_heads!r}, expected num_attention_heads={heads!r}"
            )
        rope_type = config.get("rope_type", "split")
        if rope_type not in ("split", "interleaved"):
            problems.append(f"rope_type={rope_type!r}, expected 'split' or 'interleaved'")
        rows = tensors[f"{block}{first}scale_shift_table"].shape[0]
        if rows not in (6, 9):
            problems.append(f"{block}{first}scale_shift_table has {rows} rows, expected 6 or 9")
        streams = tuple(_stream(name, config, tensors, heads) for name in names)
        for stream in streams:
            if stream.width % heads or stream.head_dim % 2:
                problems.append(
                    f"{stream.prefix}attn1 is {stream.width} wide, "
                    f"expected {heads} heads of an even width"
                )
        cross = streams[-1].width
        if modalities == "av":
            cross = tensors[f"{block}audio_to_video_attn.q_norm.weight"].shape[0]
            wanted = config.get("audio_cross_attention_dim", cross)
            if wanted != cross or cross % heads:
                problems.append(
                    f"audio_cross_attention_dim={wanted}, expected {cross}, the width of "
                    f"audio_to_video_attn, divisible by {heads} heads"
                )
        if problems:
            raise UnsupportedError("the transformer is not supported", problems)
        return cls(
            streams=streams,
            num_layers=int(config.get("num_layers", _count_layers(tensors))),
            heads=heads,
            cross_head_dim=cross // heads,
            eps=float(config.get("norm_eps", 1e-6)),
            theta=float(config.get("positional_embedding_theta", 10000.0)),
            timestep_scale=float(config.get("timestep_scale_multiplier", 1000)),
            cross_timestep_scale=float(
                config.get("av_ca_timestep_scale_multiplier", 1 if config else 1000)
            ),
            rope_type=rope_type,
            frequencies_precision=str(
                config.get("frequencies_precision", "float32" if config else "float64")
            ),
            gated=gate is not None,
            text_adaln=rows == 9,
            keyframes_embedding=first == "" and "keyframes_abs_pos_embedding" in tensors,
        )


def _fixed_problems(config: Mapping[str, Any]) -> list[str]:
    return [
        f"{key}={config[key]!r}, expected {value!r}"
        for key, value in FIXED.items()
        if key in config and config[key] != value
    ]


def _require(tensors: TensorIndex, names: Sequence[str]) -> None:
    wanted: list[str] = []
    for name in names:
        prefix = "" if name == "video" else "audio_"
        block = f"{BLOCK}0.{prefix}"
        wanted += [f"{prefix}patchify_proj.weight", f"{prefix}proj_out.weight"]
        wanted += [f"{block}scale_shift_table", f"{block}attn2.to_k.weight"]
    if len(names) == 2:
        wanted.append(f"{BLOCK}0.audio_to_video_attn.q_norm.weight")
    missing = [f"{name} is missing" for name in wanted if name not in tensors]
    if missing:
        kind = " and ".join(names)
        raise CheckpointError(f"this is no LTX-2 {kind} transformer", missing)


def _stream(
    name: Literal["video", "audio"], config: Mapping[str, Any], tensors: TensorIndex, heads: int
) -> StreamConfig:
    prefix = "" if name == "video" else "audio_"
    block = f"{BLOCK}0.{prefix}"
    caption = tensors.get(f"{prefix}caption_projection.linear_1.weight")
    width, in_channels = tensors[f"{prefix}patchify_proj.weight"].shape
    default_pos = [20, 2048, 2048] if name == "video" else [20]
    max_pos = config.get(f"{prefix}positional_embedding_max_pos", default_pos)
    context_dim = config.get(f"{prefix}cross_attention_dim")
    return StreamConfig(
        name=name,
        width=width,
        head_dim=width // heads,
        in_channels=in_channels,
        out_channels=tensors[f"{prefix}proj_out.weight"].shape[0],
        context_dim=context_dim or tensors[f"{block}attn2.to_k.weight"].shape[1],
        caption_channels=caption.shape[1] if caption is not None else 0,
        ff_bias=f"{block}ff.net.0.proj.bias" in tensors,
        prompt_adaln=f"{prefix}prompt_adaln_single.linear.weight" in tensors,
        max_pos=tuple(float(p) for p in max_pos),
    )


def _count_layers(tensors: TensorIndex) -> int:
    indices = {int(n.split(".")[1]) for n in tensors if n.startswith(BLOCK)}
    return max(indices) + 1
