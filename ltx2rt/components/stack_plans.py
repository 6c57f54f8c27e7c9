"""Which engine runs each layer of transformer and text encoder, and what flows between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ltx2rt.backends.stack import LayerPlan, StackPlan
from ltx2rt.errors import BundleError
from ltx2rt.names import TEXT_STACK, TRANSFORMER_BLOCK, TRANSFORMER_STACK, StackNames


def stack_plan(
    names: StackNames,
    options: Callable[[str], Mapping[str, Any]],
    served: Mapping[str, Sequence[int]],
) -> StackPlan:
    """The plan of a stack.

    Args:
        options: of a component.
        served: block component that there is -> the layers that it runs.

    Raises:
        BundleError: see `transformer_plan`.
    """
    if names == TRANSFORMER_STACK:
        return transformer_plan(options(TRANSFORMER_BLOCK), served)
    return text_plan(options(names.head), names)


def streams_of(options: Mapping[str, Any]) -> tuple[str, ...]:
    """The streams that engines hold; `options` are those of `transformer_block`."""
    modalities = str(options["modalities"])
    return ("video", "audio") if modalities == "av" else (modalities,)


def transformer_plan(options: Mapping[str, Any], served: Mapping[str, Sequence[int]]) -> StackPlan:
    """The diffusion transformer.

    Args:
        options: those of the component `transformer_block`.
        served: block component -> the layers that it runs.

    Raises:
        BundleError: layers that no component runs, or more than one.
    """
    layers = sorted((index, block) for block, indices in served.items() for index in indices)
    if [index for index, _ in layers] != list(range(len(layers))) or not layers:
        raise BundleError(
            "every layer of the transformer needs one component that runs it; found "
            + ", ".join(f"{block} for {list(indices)}" for block, indices in served.items())
            + "; build the bundle again."
        )
    return StackPlan(
        head=TRANSFORMER_STACK.head,
        layers=tuple(LayerPlan(block, index) for index, block in layers),
        tail=TRANSFORMER_STACK.tail,
        gives={f"{name}_hidden_out": f"{name}_hidden" for name in streams_of(options)},
    )


def text_plan(options: Mapping[str, Any], names: StackNames = TEXT_STACK) -> StackPlan:
    """Gemma and what follows it: the text projection of all its hidden states, or the language
    head of the last one.

    Args:
        names: `TEXT_STACK` or `WRITING_STACK`.
        options: those of the component `text_head`; its `layers` say for each layer which block
            runs it, and which of the head's masks and tables it takes.
    """
    counts: dict[str, int] = {}
    layers = []
    for block, kind in options["layers"]:
        index = counts[block] = counts.get(block, -1) + 1
        takes = {
            "attention_bias": f"{kind}_bias",
            "rope_cos": f"{kind}_cos",
            "rope_sin": f"{kind}_sin",
        }
        layers.append(LayerPlan(block, index, takes))
    return StackPlan(
        head=names.head,
        layers=tuple(layers),
        tail=names.tail,
        gives={"hidden_out": "hidden"},
        collects={"hidden_states": "hidden"} if names == TEXT_STACK else {},
    )
