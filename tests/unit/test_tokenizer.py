"""The tokenizer against a tiny vocabulary built here: ids are known by construction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from ltx2rt.components.tokenizer import MAX_TOKENS, Tokenizer
from ltx2rt.errors import CheckpointError

WORDS = {"<unk>": 0, "<pad>": 5, "<bos>": 7, "<eos>": 1, "a": 2, "red": 3, "car": 4}


def save(path: Path, vocabulary: dict[str, int], *, adds_bos: bool = False) -> Path:
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
        )
    tokenizer.enable_padding(length=16)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("adds_bos", [False, True])
def test_bos_comes_first_once_and_pads_lie_on_the_left(tmp_path: Path, adds_bos: bool) -> None:
    tokenizer = Tokenizer.from_file(save(tmp_path / "t.json", WORDS, adds_bos=adds_bos))
    ids, mask = tokenizer.encode(["  a red car a a\n", ""])
    assert ids.dtype == mask.dtype == np.int64
    assert ids.shape == mask.shape == (2, MAX_TOKENS)
    assert ids[0, -7:].tolist() == [5, 7, 2, 3, 4, 2, 2]
    assert mask[0].tolist() == [0] * (MAX_TOKENS - 6) + [1] * 6
    assert (ids[0, :-6] == 5).all()
    assert ids[1, -2:].tolist() == [5, 7]
    assert mask[1].sum() == 1


def test_the_end_of_a_long_prompt_is_cut(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(save(tmp_path / "t.json", WORDS))
    ids, mask = tokenizer.encode(
        ["red " + "a " * (MAX_TOKENS - 2) + "car", "a " * (MAX_TOKENS - 1)]
    )
    assert mask.all()
    assert ids[0, :2].tolist() == [7, 3]
    assert (ids[0, 2:] == 2).all()
    assert ids[1].tolist() == [7] + [2] * (MAX_TOKENS - 1)


def test_no_prompts_give_empty_arrays(tmp_path: Path) -> None:
    ids, mask = Tokenizer.from_file(save(tmp_path / "t.json", WORDS)).encode([])
    assert ids.shape == mask.shape == (0, MAX_TOKENS)


def test_eos_pads_where_there_is_no_pad_token(tmp_path: Path) -> None:
    words = {k: v for k, v in WORDS.items() if k != "<pad>"}
    assert Tokenizer.from_file(save(tmp_path / "t.json", words)).encode(["a"])[0][0, 0] == 1


def test_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    words = {k: v for k, v in WORDS.items() if k != "<bos>"}
    with pytest.raises(CheckpointError, match="<bos>"):
        Tokenizer.from_file(save(tmp_path / "t.json", words))


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff\xfe", b'{"version": "1.0", "mod'])
def test_corrupt_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.from_file(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read the tokenizer"):
        Tokenizer.from_file(tmp_path / "none.json")
