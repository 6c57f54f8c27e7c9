"""`python -m tests.option_types` writes `ltx2rt/pipelines/options.py`: what `pipe(...)` takes by
keyword, from the dataclasses, and the calls that take it, for type checkers: Python has no type
variable that would stand for such keywords.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import types
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
from typing import TYPE_CHECKING, Generic, Literal, TypedDict, TypeVar, Unpack

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from ltx2rt.components.reference_conditioner import ReferenceFile
    from ltx2rt.components.stage_trace import StageTrace
    from ltx2rt.config import GenerationConfig, GuidanceConfig, ImageCondition, NeighbourClip
    from ltx2rt.latents.duration import AutoDuration
    from ltx2rt.lora.files import Lora
    from ltx2rt.pipelines.retake_inputs import TimeWindow
    from ltx2rt.progress import Job
    from ltx2rt.results.clip import Clip
    from ltx2rt.sampling.samplers import Sampler

    #: a condition, or what its first frame shows: a file, or an image in memory
    AnyImage = ImageCondition | str | Path | Image | NDArray[np.uint8] | bytes
    #: a file, the content of one, or samples `[channels, N]` and their rate in Hz
    AnySound = str | Path | bytes | tuple[NDArray[np.float32], int]

Inputs = TypeVar("Inputs")
'''

CALLS = '''

class {name}Calls(Generic[Inputs]):
    """How pipelines that take `{name}Inputs` are called: see `Pipeline`."""

    if TYPE_CHECKING:

        def __call__(
            self,
            config: GenerationConfig | None = None,
            guidance: GuidanceConfig | None = None,
            inputs: Inputs | None = None,
            *,
            job: Job | None = None,
            trace: StageTrace | None = None,
            work_dir: Path | None = None,
            resume: bool = False,
            **options: Unpack[{name}Options],
        ) -> Clip: ...

        def generate_many(
            self,
            seeds: Iterable[int] | None = None,
            config: GenerationConfig | None = None,
            guidance: GuidanceConfig | None = None,
            inputs: Inputs | None = None,
            *,
            prompts: Sequence[str] | None = None,
            num_videos: int | None = None,
            job: Job | None = None,
            **options: Unpack[{name}Options],
        ) -> Iterator[Clip]: ...'''

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
    every = [pipeline_class(name).Inputs for name in PIPELINES]
    classes = list(dict.fromkeys(c for c in every if c is not None))
    lines = [HEAD, *class_text("GenerationOptions", "TypedDict", what, GenerationConfig)]
    for cls in classes:
        name = cls.__name__.removesuffix("Inputs")
        what = f"Those and the fields of `{cls.__name__}`."
        lines += class_text(f"{name}Options", "GenerationOptions", what, cls)
        lines.append(CALLS.format(name=name))
    command = [sys.executable, "-m", "ruff", "format", f"--stdin-filename={FILE}", "-"]
    made = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return made.stdout


class _NoCallsYet(types.ModuleType):
    """Stands in for the module while it is made: pipelines that are new inherit from it."""

    def __getattr__(self, name: str) -> type:
        return type(name, (), {"__class_getitem__": classmethod(lambda cls, _: cls)})


if __name__ == "__main__":
    sys.modules["ltx2rt.pipelines.options"] = _NoCallsYet("options")
    FILE.write_text(text(), encoding="utf-8")
