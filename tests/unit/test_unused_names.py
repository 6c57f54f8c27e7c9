"""Nothing in the packages is there for the tests alone: what only they call belongs to them."""

from __future__ import annotations

import ast
from collections import Counter

from tests.unit.test_house_rules import ROOT, tracked

#: what stays although nothing but tests calls it -> why
KEPT = {
    "audio_mel_encoder": "golden cases begin at its mel",
    "mel_front_end": "golden cases end at its mel",
    "text_projection": "golden cases compare the projection without Gemma",
    "text_hidden_states": "golden cases compare Gemma without the projection",
    "check_range": "the range check of one graph, which builds run for whole bundles",
    "HelpAction": "the command line asks a sub-command's module whether it has one",
    "flags_for": "the table of flags is made from it",
    "input_flags": "the table of flags is made from it",
    **dict.fromkeys(
        (
            *("text_head", "text_block", "text_tail", "language_head"),
            *("diffusion_features", "diffusion_context", "diffusion_pixels"),
        ),
        "the table of components names it, so that it is imported with PyTorch only",
    ),
    "TritonPythonModel": "the models of a Triton repository import it",
    "rope_angles": "the plain form that the fast one is compared with",
}


def used(tree: ast.AST) -> Counter[str]:
    """Names that a file mentions; its definitions do not count."""
    names: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names[node.id] += 1
        elif isinstance(node, ast.Attribute):
            names[node.attr] += 1
        elif isinstance(node, ast.alias):
            names[node.name.split(".")[-1]] += 1
    return names


def test_functions_and_classes_have_a_user() -> None:
    files = [p for p in tracked("*.py", "*.pyi") if "tests" not in p.relative_to(ROOT).parts]
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in files}
    total: Counter[str] = Counter()
    for tree in trees.values():
        total += used(tree)
    defined = {
        node.name
        for path, tree in trees.items()
        if path.relative_to(ROOT).parts[0] in ("ltx2rt", "export")
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    assert len(defined) > 500
    unused = {name for name in defined if not total[name] and not name.startswith("__")}
    assert unused == set(KEPT)
