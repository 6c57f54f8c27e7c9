"""`python -m tests.option_types` writes `ltx2rt/pipelines/options.py`: what `pipe(...)` takes by
keyword, from the dataclasses, for type checkers.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ltx2rt.config import GenerationConfig
from ltx2rt.pipelines.base import pipeline_class
from ltx2rt.pipelines.catalog import PIPELINES

FILE = Path(__file__).parents[1] / "ltx2rt" / "pipelines" / "options.py"

HEAD = '''"""What `pipe(...)` takes by keyword, for type checkers; made from the dataclasses.

Paths may be text, tuples any sequences; images and sound may lie in memory (`media/in_memory.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from ltx2rt.components.reference_conditioner import ReferenceFile
    from ltx2rt.config import ImageCondition, NeighbourClip
    from ltx2rt.latents.duration import AutoDuration
    from ltx2rt.lora.files import Lora
    from ltx2rt.pipelines.retake_inputs import TimeWindow
    from ltx2rt.sampling.samplers import Sampler

    #: a condition, or what its first frame shows: a file, or an image in memory
    AnyImage = ImageCondition | str | Path | Image | NDArray[np.uint8] | bytes
    #: a file, the content of one, or samples `[channels, N]` and their rate in Hz
    AnySound = str | Path | bytes | tuple[NDArray[np.float32], int]
'''

#: fields that take more than their dataclass does: `Pipeline.make_request` converts it
MORE = {"images": "Sequence[AnyImage]", "audio": "AnySound | None"}


def class_text(name: str, base: str, what: str, cls: type[Any]) -> Iterator[str]:
    yield f"\n\nclass {name}({base}, total=False):"
    yield f'    """{what}"""\n'
    for field in dataclasses.fields(cls):
        kind = re.sub(r"tuple\[(\w+), \.\.\.\]", r"Sequence[\1]", str(field.type))
        kind = re.sub(r"\bPath\b", "str | Path", kind)
        yield f"    {field.name}: {MORE.get(field.name, kind)}"


def text() -> str:
    """The module, formatted."""
    what = "The fields of a `GenerationConfig`."
    lines = [HEAD, *class_text("GenerationOptions", "TypedDict", what, GenerationConfig)]
    classes = [pipeline_class(name).Inputs for name in PIPELINES]
    for cls in dict.fromkeys(c for c in classes if c is not None):
        name = cls.__name__.removesuffix("Inputs") + "Options"
        what = f"Those and the fields of `{cls.__name__}`."
        lines += class_text(name, "GenerationOptions", what, cls)
    command = [sys.executable, "-m", "ruff", "format", f"--stdin-filename={FILE}", "-"]
    made = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return made.stdout


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
