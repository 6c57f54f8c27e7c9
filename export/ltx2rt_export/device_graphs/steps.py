"""The arithmetic between the forward passes of a stage: clean estimates, guidance, masks, and the
step to the next noise level.

`sampling.guidance` and `sampling.samplers` are its twins in numpy, whose order it keeps; deviations
for rescaling are summed in float32.
"""

from __future__ import annotations

from ltx2rt.engine import TensorSpec
from ltx2rt.names import STEP_EULER, STEP_NOISY
from ltx2rt.sampling.step_numbers import EULER_NUMBERS, NOISY_NUMBERS, PASSES
from ltx2rt_export.device_graphs.graph_writer import GraphWriter
from ltx2rt_export.graph import ExportedGraph

_SIZE = ("T", "C")


def euler_graph(latent_dtype: str, velocity_dtype: str) -> ExportedGraph:
    """A plain Euler step (spec/sampling.md §5.1) of tokens `[T, C]`.

    Args:
        latent_dtype, velocity_dtype: of the transformer's boundary.
    """
    write = _Step(EULER_NUMBERS)
    fixed = write.blended(write.guided(velocity_dtype))
    velocity = write.op("Div", write.op("Sub", "latent", fixed), write.named("sigma"))
    moved = write.op("Add", "latent", write.op("Mul", velocity, write.named("step")))
    return write.done(STEP_EULER, moved, latent_dtype, velocity_dtype)


def noisy_graph(latent_dtype: str, velocity_dtype: str) -> ExportedGraph:
    """An ancestral Euler step (§5.3): fresh noise is mixed in, and clean tokens are kept clean."""
    write = _Step(NOISY_NUMBERS)
    fixed = write.blended(write.guided(velocity_dtype))
    moved = write.op(
        "Add",
        write.op("Mul", write.named("ratio"), "latent"),
        write.op("Mul", write.named("rest"), fixed),
    )
    gained = write.op("Mul", write.named("gain"), moved)
    noise = write.op("Mul", "noise", write.named("noise_scale"))
    stepped = write.op("Add", gained, noise)
    again = write.op("Greater", write.named("again"), write.number(0))
    kept = write.op("Where", again, write.blended(stepped), stepped)
    noises = (TensorSpec("noise", "float32", _SIZE),)
    return write.done(STEP_NOISY, kept, latent_dtype, velocity_dtype, noises)


class _Step(GraphWriter):
    def __init__(self, numbers: tuple[str, ...]) -> None:
        super().__init__()
        self._numbers = numbers

    def named(self, name: str) -> str:
        """One of the numbers of this step, `[1]`."""
        at = self._numbers.index(name)
        return self.op("Slice", "numbers", self.integers(at), self.integers(at + 1))

    def guided(self, velocity_dtype: str) -> str:
        """The clean estimate, guided by those of the other passes (§7)."""
        levels = self.op("Mul", "mask", self.named("sigma"))
        clean = {}
        for name in PASSES:
            velocity = name if velocity_dtype == "float32" else self.cast(name, "float32")
            clean[name] = self.op("Sub", "latent", self.op("Mul", velocity, levels))
        cond = result = clean["cond"]
        for name in PASSES[1:]:
            away = self.op("Sub", cond, clean[name])
            result = self.op("Add", result, self.op("Mul", self.named(name), away))
        factor = self.op("Sqrt", self.op("Div", self._spread(cond), self._spread(result)))
        rescaled = self.op(
            "Mul",
            result,
            self.op(
                "Add", self.op("Mul", self.named("rescale"), factor), self.named("rescale_rest")
            ),
        )
        is_off = self.op("Equal", self.named("rescale"), self.number(0))
        return self.op("Where", is_off, result, rescaled)

    def blended(self, values: str) -> str:
        """Pulled to the clean tokens where the mask is below 1."""
        rest = self.op("Mul", "clean", self.op("Sub", self.number(1), "mask"))
        return self.op("Add", self.op("Mul", values, "mask"), rest)

    def done(
        self,
        name: str,
        moved: str,
        latent_dtype: str,
        velocity_dtype: str,
        more: tuple[TensorSpec, ...] = (),
    ) -> ExportedGraph:
        """With the new latent as it is and as the transformer takes it, and how many of its values
        are none.
        """
        either = self.op("Or", self.op("IsNaN", moved), self.op("IsInf", moved))
        bad = self.op("ReduceSum", self.cast(either, "int32"), self.integers(0, 1), keepdims=0)
        outputs = {
            TensorSpec("next", "float32", _SIZE): moved,
            TensorSpec("not_finite", "int32", (1,)): self.op("Unsqueeze", bad, self.integers(0)),
        }
        if latent_dtype != "float32":
            outputs[TensorSpec("taken", latent_dtype, _SIZE)] = self.cast(moved, latent_dtype)
        inputs = (
            TensorSpec("latent", "float32", _SIZE),
            *(TensorSpec(n, velocity_dtype, _SIZE) for n in PASSES),
            TensorSpec("mask", "float32", ("T", 1)),
            TensorSpec("clean", "float32", _SIZE),
            TensorSpec("numbers", "float32", (len(self._numbers),)),
            *more,
        )
        return self.finish(name, inputs, outputs)

    def _spread(self, values: str) -> str:
        """The sum of squares around the mean, of all values."""
        axes = self.integers(0, 1)
        off = self.op("Sub", values, self.op("ReduceMean", values, axes, keepdims=1))
        return self.op("ReduceSum", self.op("Mul", off, off), axes, keepdims=1)
