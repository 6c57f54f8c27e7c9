"""Hostile input ends in one sentence: a few of each kind always, thousands with `-m fuzz`."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.attack import attack
from tests.fuzz.targets import TARGETS

LONG = 3000


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=12, deadline=None)
@given(number=st.integers(0, 2**31))
def test_hostile_input(name: str, number: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    outcome = attack(TARGETS[name], folder, range(number, number + 4))
    assert outcome.faults == []


@pytest.mark.fuzz
@pytest.mark.parametrize("name", TARGETS)
def test_much_hostile_input(name: str, tmp_path: Path) -> None:
    outcome = attack(TARGETS[name], tmp_path, range(LONG))
    assert outcome.faults == []
    assert outcome.refused > LONG // 4


@pytest.mark.parametrize("name", TARGETS)
def test_the_good_input_is_read(name: str, tmp_path: Path) -> None:
    """Else every refusal would say nothing."""
    if name == "tokenizer":
        pytest.skip("a small one is no tokenizer of Gemma")
    target = TARGETS[name]
    path = tmp_path / target.name
    path.write_bytes(target.seed(tmp_path))
    target.read(path)
