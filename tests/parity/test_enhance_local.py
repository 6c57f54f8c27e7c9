"""Prompt enhancement by a local transformers model: the demo's Gemma with a chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ltx2rt.components.enhance import EnhanceConfig, enhance_prompt
from ltx2rt.errors import EnhanceError
from ltx2rt_export import enhance

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}model: {% endif %}"
)


@pytest.fixture
def gemma(demo_model: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "gemma"
    shutil.copytree(demo_model["gemma"], folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(
        enhance._DECODING, "gemma3", {**enhance._DECODING["gemma3"], "max_new_tokens": 24}
    )
    return folder


def test_the_seed_decides_what_a_local_gemma_says(gemma: Path) -> None:
    ask = enhance.local_model(gemma)
    messages = [{"role": "user", "content": "a lake"}]
    first = ask(messages, None, 3)
    assert len(first) > 8
    assert ask(messages, None, 3) == first
    assert ask(messages, None, 4) != first
    asked = []

    def counted(*arguments: object) -> str:
        asked.append(arguments)
        return ask(*arguments)  # type: ignore[arg-type]

    config = EnhanceConfig(model=str(gemma))
    answer = enhance_prompt("a lake", config, seed=3, local=counted)
    assert answer
    assert enhance_prompt("a lake", config, seed=3, local=counted) == answer
    assert len(asked) == 1


def test_models_that_cannot_be_asked(gemma: Path, tmp_path: Path) -> None:
    with pytest.raises(EnhanceError, match="is not the folder of a transformers model"):
        enhance.local_model(tmp_path)
    config = json.loads((gemma / "config.json").read_text())
    (gemma / "config.json").write_text(json.dumps({**config, "model_type": "gemma4_unified"}))
    with pytest.raises(EnhanceError, match="'gemma4_unified' model, which cannot"):
        enhance.local_model(gemma)
