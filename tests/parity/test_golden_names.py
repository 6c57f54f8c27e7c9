"""The golden runner replays any directory of the layout: names of cases, prompts and files of
contexts are the directory's own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltx2rt.engine import Array
from ltx2rt.weights.safetensors import SafetensorsFile
from ltx2rt.weights.safetensors_writer import write_safetensors
from tests.parity import pipelines
from tests.parity.golden import REPOSITORY, Runner, golden_root, load_case, read_arrays
from tests.parity.pipeline_prompts import prompt_names, stored_contexts
from tests.parity.run_golden import main

GOLDEN = REPOSITORY / "tests/golden"

Run = tuple[dict[str, Array], int]


@pytest.fixture(scope="module")
def evening() -> Run:
    """What a case gives, as its own name and prompts are."""
    path = GOLDEN / "pipelines/distilled_23.json"
    case = {**json.loads(path.read_text()), "name": path.stem}
    return pipelines._run(case, Runner(GOLDEN, "torch"))


def renamed(folder: Path, prompts: Callable[[str, str], dict[str, str]]) -> Path:
    """A directory with one pipeline case of the goldens under another name, and other names for its
    texts.
    """
    (folder / "pipelines").mkdir(parents=True)
    (folder / "checkpoints").symlink_to(GOLDEN / "checkpoints")
    case = json.loads((GOLDEN / "pipelines/distilled_23.json").read_text())
    case["prompts"] = prompts(*case["prompts"].values())
    (folder / "pipelines/evening.json").write_text(json.dumps(case))
    shutil.copy(
        GOLDEN / "pipelines/distilled_23.safetensors", folder / "pipelines/evening.safetensors"
    )
    return folder


def by_order(prompt: str, negative: str) -> dict[str, str]:
    return {"spoken": prompt, "unwanted": negative}


def by_letter(prompt: str, negative: str) -> dict[str, str]:
    return {"negative": negative, "prompt": prompt}


def alone(prompt: str, negative: str) -> dict[str, str]:
    return {"text": prompt}


def write_contexts(path: Path, name: str, values: Mapping[str, Array]) -> None:
    tensors = {f"{name}.{m}": values[f"context.{m}"] for m in ("video", "audio")}
    write_safetensors(path, {k: ("float32", v.shape, [v]) for k, v in tensors.items()})


@pytest.mark.parametrize("prompts", [by_order, by_letter, alone])
def test_a_copy_with_other_names_passes(
    tmp_path: Path, prompts: Callable[[str, str], dict[str, str]], monkeypatch: pytest.MonkeyPatch,
    evening: Run,
) -> None:  # fmt: skip
    folder = renamed(tmp_path / "any", prompts)
    calls: list[Mapping[str, Any]] = []

    def run(case: Mapping[str, Any], runner: Runner) -> Run:
        calls.append(case)
        return evening

    if prompts is not by_order:  # one whole run is enough
        monkeypatch.setattr(pipelines, "_run", run)
    assert main([str(folder), "--backend", "torch"]) == 0
    case = json.loads((folder / "pipelines/evening.json").read_text())
    original = json.loads((GOLDEN / "pipelines/distilled_23.json").read_text())
    positive, negative = prompt_names(case)
    assert case["prompts"][positive] == original["prompts"]["p0"]
    assert (case["prompts"][negative] if negative else None) == (
        None if prompts is alone else original["prompts"]["n0"]
    )
    assert all(c["name"] == "evening" for c in calls)


@pytest.mark.parametrize(
    "file",
    [
        "contexts_2.3_visible", "contexts_2.3", "texts-23-float32", "evening_texts",
        "anything",  # named by the case
    ],
)  # fmt: skip
def test_contexts_are_found_under_any_name_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, evening: Run
) -> None:
    monkeypatch.setattr(pipelines, "_run", lambda *_: evening)
    folder = renamed(tmp_path / "any", by_order)
    path = folder / "pipelines/evening.json"
    case = json.loads(path.read_text())
    if file == "anything":
        case["contexts"] = "anything.safetensors"
        path.write_text(json.dumps(case))
    values = dict(evening[0])
    write_contexts(folder / f"pipelines/{file}.safetensors", "spoken", values)
    for other in ("contexts_2.3_bf16", "contexts_2.5_visible", "contexts_2_visible"):
        wrong = {k: np.zeros_like(v) for k, v in values.items() if k.startswith("context.")}
        write_contexts(folder / f"pipelines/{other}.safetensors", "spoken", wrong)
    assert stored_contexts(path, case).keys() == {"context.video", "context.audio"}
    assert main([str(folder), "--backend", "torch"]) == 0
    values["context.video"] = values["context.video"] + 1
    write_contexts(folder / f"pipelines/{file}.safetensors", "spoken", values)
    assert main([str(folder), "--backend", "torch"]) == 1


def test_a_case_says_which_of_several_texts_it_means() -> None:
    prompts = {"p0": "a", "p1": "b", "n0": "c", "n1": "d"}
    assert prompt_names({"prompts": prompts, "call": {}}) == ("p0", "n0")
    call = {"prompt": "p1", "negative_prompt": "n1"}
    assert prompt_names({"prompts": prompts, "call": call}) == ("p1", "n1")


def test_components_need_no_names_of_files_either(tmp_path: Path) -> None:
    folder = tmp_path / "any/components"
    folder.mkdir(parents=True)
    (tmp_path / "any/checkpoints").symlink_to(GOLDEN / "checkpoints")
    shared = []
    for index, path in enumerate(
        sorted(((golden_root() or GOLDEN) / "components").glob("*.safetensors"))
    ):
        file = SafetensorsFile(path)
        if "in.same_inputs_as" in file:
            base = json.loads(file.metadata["params"])["inputs"]
            if not path.with_name(f"{base}.safetensors").exists():
                continue  # too large for the repository
            shared.append((path, folder / f"{index}.safetensors"))
            shutil.copy(path, folder / f"{index}.safetensors")
            shutil.copy(path.with_name(f"{base}.safetensors"), folder / f"{base[::-1]}.safetensors")
    if not shared:
        pytest.skip("cases that share inputs with another are not in the repository")
    for original, copy in shared:
        wanted, found = load_case(original).inputs, load_case(copy).inputs
        assert wanted.keys() == found.keys()
        assert all(np.array_equal(wanted[name], found[name]) for name in wanted)
    shutil.copy(GOLDEN / "components/tokenizer_gemma3.json", folder / "v2_tokenizer_gemma3.json")
    assert main([str(folder.parent), "--only", "v2_*", "--backend", "torch"]) == 0
    assert read_arrays(SafetensorsFile(shared[0][1]))
