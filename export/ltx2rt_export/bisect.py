"""Where two graphs of one component part: the first node whose result differs, and that node alone
as a graph with its inputs, for `ltx2rt verify --bisect`.

The graphs are cut and marked by Polygraphy (extra `debug`); ONNX Runtime runs both.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime as ort

from ltx2rt.engine import Array
from ltx2rt.errors import OptionError, UnsupportedError

GRAPH_FILE, INPUTS_FILE, REPORT_FILE = "node.onnx", "inputs.npz", "report.json"
#: results that are compared at once: each is held in memory, by both runners
AT_ONCE = 64
