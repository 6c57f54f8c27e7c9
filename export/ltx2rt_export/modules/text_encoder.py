"""Text conditioning: token ids to contexts (spec/text_encoder.md).

Three components, as the diffusion transformer: `text_head` embeds tokens, `text_block` runs once a
layer with that layer's weights, `text_tail` turns all hidden states into contexts. Gemma 4 has
layers of two structures, so it has a second block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ltx2rt.engine import TensorSpec
from ltx2rt.errors import CheckpointError
from ltx2rt.names import TEXT_BLOCK, TEXT_BLOCK_FULL, TEXT_HEAD, TEXT_TAIL
from ltx2rt.weights.safetensors import TensorEntry
from ltx2rt_export.component import Component, TensorIndex, below
from ltx2rt_export.modules.connectors import Connector
from ltx2rt_export.modules.connectors_config import ConnectorConfig
from ltx2rt_export.modules.gemma import (
    GemmaBlock,
    GemmaEncoder,
    GemmaHead,
    HiddenStates,
    gemma_layer,
    gemma_norm,
)
from ltx2rt_export.modules.gemma_config import gemma_root
from ltx2rt_export.modules.meta import match_weights, on_meta
from ltx2rt_export.modules.tables import MAX_TOKENS
from ltx2rt_export.modules.text_projection import (
    FeatureExtractorV1,
    FeatureExtractorV2,
    feature_extractor,
)
from ltx2rt_export.modules.text_projection_config import ExtractorConfig

#: where repacked files may hold the parts; the first entry is the official place
CONNECTOR_ROOTS = ("model.diffusion_model.", "diffusion_model.", "")
PROJECTION_ROOTS = ("", "model.", "model.diffusion_model.", "diffusion_model.")

TRACE = {"B": 2, "S": 256}

FeatureExtractor = FeatureExtractorV1 | FeatureExtractorV2


class TextProjection(nn.Module):
    """Feature extractor and both connectors: hidden states to contexts."""

    def __init__(self, projection: FeatureExtractor, video: Connector, audio: Connector) -> None:
        super().__init__()
        self.text_embedding_projection = projection
        self.video_embeddings_connector = video
        self.audio_embeddings_connector = audio

    def contexts(self, states: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Video and audio features, video and audio contexts, of states `[B, S, D, L]`."""
        video, audio = self.text_embedding_projection(states, attention_mask != 0)
        return (
            video,
            audio,
            self.video_embeddings_connector(video, attention_mask),
            self.audio_embeddings_connector(audio, attention_mask),
        )

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """As `contexts`, of hidden states `[L, B, S, D]`."""
        return self.contexts(hidden_states.permute(1, 2, 3, 0), attention_mask)


class TextTail(nn.Module):
    """The final norm on the last hidden state, then features and contexts."""

    def __init__(self, norm: nn.Module, projection: TextProjection) -> None:
        super().__init__()
        self.norm = norm
        self.projection = projection

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings and outputs of all layers, `[L, B, S, D]`, to contexts `[B, S, C]`."""
        last = self.norm(hidden_states[-1:])
        states = torch.cat([hidden_states[:-1], last]).permute(1, 2, 3, 0)
        _, _, video, audio = self.projection.contexts(states, attention_mask)
        return video, audio


def text_head(gemma_config: Mapping[str, Any], gemma_tensors: TensorIndex) -> Component:
    """Token embeddings, masks and rotary tables.

    Its option `layers` says for every layer which block runs it and whose masks and tables it
    takes.
    """
    head = on_meta(lambda: GemmaHead(gemma_config))
    root = gemma_root(gemma_tensors)
    outputs = [TensorSpec("hidden", "float32", ("B", "S", head.hidden_size))]
    for kind in head.kinds:
        rows = (1, "S", head.head_dims[kind])
        outputs += [
            TensorSpec(f"{kind}_bias", "float32", ("B", 1, "S", "S")),
            TensorSpec(f"{kind}_cos", "float32", rows),
            TensorSpec(f"{kind}_sin", "float32", rows),
        ]
    weights = match_weights(head, gemma_tensors, "the text encoder", root)
    blocks = [block for block, _ in _structures(gemma_config, head)]
    return Component(
        name=TEXT_HEAD,
        module=head,
        inputs=_token_specs(),
        outputs=tuple(outputs),
        weights=weights,
        layers=(weights,),
        weight_binding="input",
        trace=TRACE,
        options={
            "max_tokens": MAX_TOKENS,
            "gemma": str(gemma_config.get("model_type")),
            "vocab_size": weights["embed_tokens.weight"].shape[0],
            "layers": [list(pair) for pair in zip(blocks, head.layer_types, strict=True)],
        },
    )


def text_block(
    gemma_config: Mapping[str, Any], gemma_tensors: TensorIndex, name: str = TEXT_BLOCK
) -> Component:
    """The decoder layers of one structure: `text_block`, and `text_block_full` where Gemma's
    layers of full attention have other weights than the others.

    Raises:
        CheckpointError: tensors of its layers are missing or do not fit; all are listed.
    """
    head = on_meta(lambda: GemmaHead(gemma_config))
    root = gemma_root(gemma_tensors)
    structures = _structures(gemma_config, head)
    indices = [i for i, (block, _) in enumerate(structures) if block == name]
    layer = structures[indices[0]][1]
    problems: list[str] = []
    layers = []
    for index in indices:
        try:
            found = match_weights(
                layer, gemma_tensors, "the text encoder", f"{root}layers.{index}."
            )
        except CheckpointError as error:
            problems += error.problems
        else:
            layers.append({f"layer.{key}": entry for key, entry in found.items()})
    if problems:
        raise CheckpointError("the text encoder does not fit this model", problems)
    width = head.hidden_size
    rows = (1, "S", head.head_dims[head.layer_types[indices[0]]])
    return Component(
        name=name,
        module=on_meta(lambda: GemmaBlock(layer)),
        inputs=(
            TensorSpec("hidden", "float32", ("B", "S", width)),
            TensorSpec("attention_bias", "float32", ("B", 1, "S", "S")),
            TensorSpec("rope_cos", "float32", rows),
            TensorSpec("rope_sin", "float32", rows),
        ),
        outputs=(TensorSpec("hidden_out", "float32", ("B", "S", width)),),
        weights=layers[0],
        layers=tuple(layers),
        weight_binding="input",
        trace=TRACE,
    )


def has_full_block(gemma_config: Mapping[str, Any]) -> bool:
    """Whether this Gemma has layers of two structures."""
    head = on_meta(lambda: GemmaHead(gemma_config))
    return any(block == TEXT_BLOCK_FULL for block, _ in _structures(gemma_config, head))


def _structures(config: Mapping[str, Any], head: GemmaHead) -> list[tuple[str, nn.Module]]:
    """For every layer the name of its block and a layer of its structure, on meta."""
    found: dict[tuple[Any, ...], tuple[str, nn.Module]] = {}
    of_kind: dict[str, tuple[str, nn.Module]] = {}
    for kind in head.kinds:
        index = head.layer_types.index(kind)
        layer = on_meta(partial(gemma_layer, config, index))
        structure = tuple((k, tuple(v.shape)) for k, v in layer.state_dict().items())
        if structure not in found:
            found[structure] = TEXT_BLOCK_FULL if found else TEXT_BLOCK, layer
        of_kind[kind] = found[structure]
    return [of_kind[kind] for kind in head.layer_types]


def text_tail(
    gemma_config: Mapping[str, Any],
    gemma_tensors: TensorIndex,
    config: Mapping[str, Any],
    tensors: TensorIndex,
) -> Component:
    """Final norm, feature extractor and connectors.

    Args:
        gemma_config: `config.json` of the Gemma directory, or the `gemma_config` metadata of a
            text-encoder file.
        gemma_tensors: all tensors of that directory or file.
        config: the `transformer` object of the checkpoint's metadata, or {}.
        tensors: all tensors of the checkpoint, names as in the file. The text projection is looked
            for here, then among `gemma_tensors` (LTX-2.5 ships it there).

    Raises:
        CheckpointError: tensors are missing or do not fit; all parts are checked before raising.
        UnsupportedError: a configuration we do not support.
    """
    head = on_meta(lambda: GemmaHead(gemma_config))
    norm = on_meta(lambda: gemma_norm(gemma_config))
    merged = {**gemma_tensors, **tensors}
    states = head.num_layers + 1
    projection, parts = _projection(config, merged, head.hidden_size, states)
    root = gemma_root(gemma_tensors)
    weights = _match(
        "the text encoder",
        [
            ("norm.", norm, gemma_tensors, f"{root}norm."),
            *((f"projection.{name}", part, found, place) for name, part, found, place in parts),
        ],
    )
    return Component(
        name=TEXT_TAIL,
        module=on_meta(lambda: TextTail(norm, projection)),
        inputs=(
            TensorSpec("hidden_states", "float32", (states, "B", "S", head.hidden_size)),
            TensorSpec("attention_mask", "int64", ("B", "S")),
        ),
        outputs=_context_specs(projection),
        weights=weights,
        trace=TRACE,
    )


def text_projection(
    config: Mapping[str, Any], tensors: TensorIndex, hidden_size: int, num_hidden_states: int
) -> Component:
    """Feature extractor and connectors alone; `tensors`: of all files that hold them."""
    projection, parts = _projection(config, tensors, hidden_size, num_hidden_states)
    video, audio = projection.text_embedding_projection.widths
    return Component(
        name="text_projection",
        module=projection,
        inputs=(
            TensorSpec("hidden_states", "float32", (num_hidden_states, "B", "S", hidden_size)),
            TensorSpec("attention_mask", "int64", ("B", "S")),
        ),
        outputs=(
            TensorSpec("video_features", "float32", ("B", "S", video)),
            TensorSpec("audio_features", "float32", ("B", "S", audio)),
            *_context_specs(projection),
        ),
        weights=_match("the text projection", parts),
        trace=TRACE,
    )


def text_hidden_states(gemma_config: Mapping[str, Any], gemma_tensors: TensorIndex) -> Component:
    """Gemma alone, with all its hidden states: for comparison with other implementations."""
    gemma = on_meta(lambda: GemmaEncoder(gemma_config))
    shape = (gemma.num_layers + 1, "B", "S", gemma.hidden_size)
    return Component(
        name="text_hidden_states",
        module=on_meta(lambda: HiddenStates(gemma)),
        inputs=_token_specs(),
        outputs=(TensorSpec("hidden_states", "float32", shape),),
        weights=_match("Gemma", [("gemma.", gemma, gemma_tensors, gemma_root(gemma_tensors))]),
        trace=TRACE,
    )


Part = tuple[str, nn.Module, TensorIndex, str]


def _projection(
    config: Mapping[str, Any], tensors: TensorIndex, hidden_size: int, num_hidden_states: int
) -> tuple[TextProjection, list[Part]]:
    """Build extractor and connectors on meta, and say where the weights of each are."""
    width = hidden_size * num_hidden_states
    root = _root(tensors, PROJECTION_ROOTS, "text_embedding_projection.")
    kind = ExtractorConfig.from_checkpoint(config, below(tensors, root))
    extractor = on_meta(lambda: feature_extractor(kind, width))
    parts: list[Part] = [("text_embedding_projection.", extractor, tensors, root)]
    connectors: list[Connector] = []
    for modality, features in zip(("video", "audio"), extractor.widths, strict=True):
        names = [f"{modality}_embeddings_connector."]
        if modality == "video":
            names.append("embeddings_connector.")  # files of video-only models
        root = _root(tensors, [r + n for n in names for r in CONNECTOR_ROOTS], "")
        sizes = ConnectorConfig.from_checkpoint(config, below(tensors, root), modality)
        if sizes.width != features:
            raise CheckpointError(
                f"the {modality} connector is {sizes.width} wide, but the text projection gives "
                f"{features} features: the files belong to different models."
            )
        connectors.append(on_meta(partial(Connector, sizes)))
        parts.append((f"{modality}_embeddings_connector.", connectors[-1], tensors, root))
    module = on_meta(lambda: TextProjection(extractor, *connectors))
    return module, parts


def _root(tensors: TensorIndex, roots: Sequence[str], part: str) -> str:
    """The first of `roots` under which `part` has tensors; the first of all if there is none."""
    for root in roots:
        if any(name.startswith(root + part) for name in tensors):
            return root + part
    return roots[0] + part


def _match(where: str, parts: Sequence[Part]) -> dict[str, TensorEntry]:
    """Weights of all parts, named as in the module that holds them; reports all problems."""
    found: dict[str, TensorEntry] = {}
    problems: list[str] = []
    for name, module, tensors, root in parts:
        try:
            matched = match_weights(module, tensors, where, root)
        except CheckpointError as error:
            problems += error.problems
        else:
            found.update({name + key: entry for key, entry in matched.items()})
    if problems:
        raise CheckpointError(f"{where} does not fit this model", problems)
    return found


def _token_specs() -> tuple[TensorSpec, TensorSpec]:
    return (
        TensorSpec("input_ids", "int64", ("B", "S")),
        TensorSpec("attention_mask", "int64", ("B", "S")),
    )


def _context_specs(projection: TextProjection) -> tuple[TensorSpec, TensorSpec]:
    video, audio = projection.video_embeddings_connector, projection.audio_embeddings_connector
    return (
        TensorSpec("video_context", "float32", ("B", "S", video.config.width)),
        TensorSpec("audio_context", "float32", ("B", "S", audio.config.width)),
    )
