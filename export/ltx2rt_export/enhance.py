"""Ask a local Gemma to write out a prompt (spec/text_encoder.md §6), for `components.enhance`.

Gemma 3 (the text encoder's own folder will do) samples; instruction-tuned Gemma 4 decodes greedily.
The fine-tuned `gemma4_unified` of LTX-2.5 only encodes and is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ltx2rt.errors import EnhanceError
from ltx2rt.user_files import read_limited

#: model type -> arguments of `generate`
_DECODING: dict[str, dict[str, Any]] = {
    "gemma3": {"do_sample": True, "temperature": 0.7, "max_new_tokens": 512},
    "gemma4": {"do_sample": False, "no_repeat_ngram_size": 5, "max_new_tokens": 600},
}
_MULTIPLE = 8  # tokens are padded on the left to a multiple of this
_IMAGE_SIDE = 896


def local_model(folder: str | Path) -> Callable[[list[dict[str, Any]], Path | None, int], str]:
    """Something that asks the model in `folder`; it is loaded when asked.

    Raises:
        EnhanceError: the folder holds no Gemma that can answer.
    """
    kind = _kind_of(Path(folder))

    def ask(messages: list[dict[str, Any]], image: Path | None, seed: int) -> str:
        return _ask(Path(folder), kind, messages, image, seed)

    return ask


_MAX_CONFIG_BYTES = 10_000_000


def _kind_of(folder: Path) -> str:
    try:
        config = json.loads(read_limited(folder / "config.json", _MAX_CONFIG_BYTES))
        kind = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise EnhanceError(
            f"{folder} is not the folder of a transformers model: it has no config.json that "
            "names a model_type."
        ) from error
    if kind not in _DECODING:
        raise EnhanceError(
            f"{folder} holds a {kind!r} model, which cannot enhance prompts here; allowed: "
            f"{', '.join(_DECODING)}, or any model behind an endpoint (--enhance-url)."
        )
    return str(kind)


def _ask(
    folder: Path, kind: str, messages: list[dict[str, Any]], image: Path | None, seed: int
) -> str:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

    try:
        reader = (AutoTokenizer if image is None else AutoProcessor).from_pretrained(
            folder, local_files_only=True
        )
        model = AutoModelForImageTextToText.from_pretrained(
            folder, local_files_only=True, dtype="auto"
        )
        text = reader.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        pictures = {} if image is None else {"images": [_picture(image)]}
        given = reader(text=text, return_tensors="pt", add_special_tokens=False, **pictures)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise EnhanceError(f"{folder} cannot be asked: {str(error).splitlines()[0]}.") from error
    tokenizer = getattr(reader, "tokenizer", reader)
    padded = _padded(dict(given), int(tokenizer.pad_token_id or 0))
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        tokens = model.generate(**padded, **_DECODING[kind])
    new = tokens[0, padded["input_ids"].shape[1] :]
    return str(tokenizer.decode(new, skip_special_tokens=True))


def _padded(given: dict[str, Any], pad_token: int) -> dict[str, Any]:
    """Token tensors `[1, T]` padded on the left; pictures as they are."""
    from torch.nn.functional import pad

    count = -given["input_ids"].shape[1] % _MULTIPLE
    fill = {"input_ids": pad_token, "attention_mask": 0, "token_type_ids": 0}
    return {
        name: pad(value, (count, 0), value=fill[name]) if name in fill else value
        for name, value in given.items()
    }


def _picture(path: Path) -> Any:
    from PIL import Image

    from ltx2rt.media.still_reader import load_image

    picture = Image.fromarray(load_image(path))
    scale = _IMAGE_SIDE / max(picture.size)
    return picture.resize([max(1, round(side * scale)) for side in picture.size])
