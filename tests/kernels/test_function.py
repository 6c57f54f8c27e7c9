"""Nodes and functions: names, attributes, and what TensorRT's parser needs to see."""

from __future__ import annotations

import onnx
import pytest

from ltx2rt_kernels import catalog
from ltx2rt_kernels.errors import KernelError
from ltx2rt_kernels.function import function_of, make_node
from ltx2rt_kernels.qk_norm_rope.spec import SPLIT
from ltx2rt_kernels.spec import Operator

OPERATORS = catalog.operators()


def test_node_names_its_plugin_and_writes_every_attribute() -> None:
    node = make_node(SPLIT, list("abcdefgh"), ["y", "z"], name="n", epsilon=1e-5)
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert values == {
        "plugin_namespace": b"ltx2rt",
        "plugin_version": b"1",
        "num_heads": 32,
        "epsilon": pytest.approx(1e-5),
    }
    assert (node.op_type, node.domain, node.name) == ("QkNormRope", "ltx2rt", "n")


def test_node_refuses_unknown_attributes() -> None:
    with pytest.raises(KernelError, match="no attribute eps; it has: num_heads, epsilon"):
        make_node(SPLIT, [], [], eps=1e-5)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=list(OPERATORS))
def test_function_agrees_with_its_operator(operator: Operator) -> None:
    function = function_of(operator)
    assert (function.domain, function.name) == ("ltx2rt", operator.node)
    assert list(function.input) == [t.name for t in operator.inputs]
    assert list(function.output) == [t.name for t in operator.outputs]
    assert set(function.attribute) == {
        "plugin_namespace",
        "plugin_version",
        *operator.attributes,
    }
    assert {n.domain for n in function.node} == {""}


def test_no_operator_has_a_standard_name() -> None:
    """The TensorRT-RTX parser ignores the domain."""
    standard = {s.name for s in onnx.defs.get_all_schemas_with_history()}
    assert not standard & {o.node for o in OPERATORS.values()}
    assert len({o.node for o in OPERATORS.values()}) == len(OPERATORS)
