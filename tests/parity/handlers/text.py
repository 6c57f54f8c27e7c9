"""Golden handlers of text conditioning: tokenizer, Gemma's hidden states, features, contexts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ltx2rt.components.language_model import LanguageModel
from ltx2rt.components.text_encoder import TextEncoder
from ltx2rt.components.tokenizer import Tokenizer
from ltx2rt.engine import Array, Engine
from ltx2rt.names import TEXT_BLOCK_FULL, TEXT_STACK, WRITING_STACK
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile, TensorEntry
from ltx2rt_export.component import Component
from ltx2rt_export.modules.language_head import language_head
from ltx2rt_export.modules.text_encoder import (
    has_full_block,
    text_block,
    text_head,
    text_hidden_states,
    text_projection,
    text_tail,
)
from ltx2rt_export.reference import component_stack
from tests.parity.golden import UNREACHED, Case, Runner, Skip, handles


def gemma_files(run: Runner, name: str) -> tuple[dict[str, Any], dict[str, TensorEntry]]:
    """Configuration and tensors of a Gemma directory or of a single-file pack."""
    path = run.checkpoint(name)
    if path.is_dir():
        tensors: dict[str, TensorEntry] = {}
        for file in sorted(path.glob("*.safetensors")):
            tensors.update(SafetensorsFile(file))
        return json.loads((path / "config.json").read_text()), tensors
    pack = SafetensorsFile(path)
    return json.loads(pack.metadata["gemma_config"]), dict(pack)


def gemma_checkpoints(run: Runner) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and configurations of the directory's Gemma checkpoints."""
    names = {p.name.removesuffix(".xz") for p in (run.root / "checkpoints").iterdir()}
    for name in sorted(names, key=lambda n: ("gemma" not in n, n)):  # unpack the likely ones first
        path = run.checkpoint(name)
        is_gemma = (
            (path / "config.json").exists()
            if path.is_dir()
            else "gemma_config" in SafetensorsFile(path).metadata
        )
        if is_gemma:
            yield name, gemma_files(run, name)[0]


def tokenizer(run: Runner, name: str) -> Tokenizer:
    path = run.checkpoint(name)
    if path.is_dir():
        return Tokenizer.from_file(path / "tokenizer.json")
    return Tokenizer(
        MappedFiles().raw(SafetensorsFile(path)["tokenizer_json"]).tobytes(), str(path)
    )


def gemma_of(case: Case, run: Runner) -> str:
    """The Gemma checkpoint that belongs to a case's model, found by the version it declares."""
    source = json.loads(
        SafetensorsFile(run.checkpoint(case.checkpoint)).metadata.get(
            "gemma_source_checkpoint", "null"
        )
    )
    for name, config in gemma_checkpoints(run):
        if config.get("gemma_version") == (source or {}).get("gemma_version"):
            return name
    raise Skip(f"no Gemma checkpoint here belongs to {case.checkpoint}")


@handles("text")
def contexts(case: Case, run: Runner) -> Mapping[str, Any]:
    if "hidden_states" in case.inputs:
        return from_hidden(case, run)
    return from_prompt(case, run)


def from_hidden(case: Case, run: Runner) -> Mapping[str, Any]:
    states = case.inputs["hidden_states"].astype(np.float32)
    component = text_projection(
        run.config(case.checkpoint).get("transformer") or {},
        run.tensors(case.checkpoint),
        states.shape[-1],
        states.shape[0],
    )
    mask = case.inputs["attention_mask"].astype(np.int64)
    got = run.engine(component)({"hidden_states": states, "attention_mask": mask})
    return {
        "video_features": got["video_features"],
        "audio_features": got["audio_features"],
        "video_encoding": got["video_context"],
        "audio_encoding": got["audio_context"],
        "attention_mask": np.ones_like(mask),
    }


def from_prompt(case: Case, run: Runner) -> Mapping[str, Any]:
    name = gemma_of(case, run)
    gemma = gemma_files(run, name)
    config = run.config(case.checkpoint).get("transformer") or {}
    encoder = text_encoder_of(
        [
            text_head(*gemma),
            text_block(*gemma),
            *([text_block(*gemma, TEXT_BLOCK_FULL)] if has_full_block(gemma[0]) else []),
            text_tail(*gemma, config, run.tensors(case.checkpoint)),
        ],
        run.engine,
        run.layers,
    )
    input_ids, mask = tokenizer(run, name).encode([case.params["prompt"]])
    if not np.array_equal(mask, case.inputs["attention_mask"]):
        raise AssertionError(f"{case.name}: {mask.sum()} valid tokens, another mask than stored")
    got = encoder(input_ids, mask)
    rows = slice(*(int(x) if x else None for x in case.params["rows"].split(":")))
    return {
        "video_encoding": got.video[:, rows],
        "audio_encoding": got.audio[:, rows],
        "attention_mask": np.ones_like(mask),
    }


def text_encoder_of(
    components: Sequence[Component],
    engine: Callable[[Component], Engine],
    layers: Callable[[Component], Sequence[Mapping[str, Array]]],
) -> TextEncoder:
    """The runtime's text encoder over components: head, blocks, tail."""
    return TextEncoder(component_stack(TEXT_STACK, components, engine, layers))


@handles("gemma")
def hidden_states(case: Case, run: Runner) -> Mapping[str, Any]:
    if "logits" in case.outputs:
        return written(case, run)
    component = text_hidden_states(*gemma_files(run, case.checkpoint))
    inputs = {k: case.inputs[k].astype(np.int64) for k in ("input_ids", "attention_mask")}
    states = run.engine(component)(inputs)["hidden_states"]
    if states.shape[1] != 1:
        raise Skip("the stored rows are defined for one prompt")
    valid = states[:, 0, -case.params["valid_tokens"] :]
    return {"hidden_states": valid[:, :: case.params["token_stride"]]}


def written(case: Case, run: Runner) -> Mapping[str, Any]:
    """Scores of what follows every token of a text, and the likeliest tokens after it."""
    gemma = gemma_files(run, case.checkpoint)
    parts = [text_head(*gemma), text_block(*gemma), language_head(*gemma)]
    if has_full_block(gemma[0]):
        parts.append(text_block(*gemma, TEXT_BLOCK_FULL))
    tokens = tokenizer(run, case.checkpoint)
    model = LanguageModel(component_stack(WRITING_STACK, parts, run.engine, run.layers), tokens)
    given, wanted = case.inputs["input_ids"][0].tolist(), case.outputs["greedy_ids"].shape[1]
    scores = [model.scores(given[: count + 1]) for count in range(len(given))]
    found = [*given, int(scores[-1].argmax())]
    while len(found) < wanted:
        found.append(int(model.scores(found).argmax()))
    return {
        "logits": np.stack(scores)[None],
        "greedy_ids": np.array([found]),
        # the official chat begins with two <bos>, ours with one, as Gemma was trained
        **{name: UNREACHED for name in case.outputs if name.startswith(("image.", "chat_ids"))},
    }


@handles("json:tokenizer_gemma3", "json:tokenizer_gemma4")
def tokens(case: Case, run: Runner) -> Mapping[str, Any]:
    family = case.component.removeprefix("json:tokenizer_")
    names = (n for n, c in gemma_checkpoints(run) if str(c["model_type"]).startswith(family))
    name = next(names, None)
    if name is None:
        raise Skip(f"no {family} checkpoint in this directory")
    ids, mask = tokenizer(run, name).encode([row["text"] for row in case.data])
    wanted = [[r["pad_id"]] * r["n_pad_left"] + r["ids"] for r in case.data]
    lengths = [r["length"] - r["n_pad_left"] for r in case.data]
    return {
        "input_ids": (ids, np.array(wanted)),
        "valid_tokens": (mask.sum(axis=1), np.array(lengths)),
    }
