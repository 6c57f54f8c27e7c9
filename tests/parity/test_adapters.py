"""Every kind of adapter against what its trainer does: the weights that LyCORIS and PEFT run with.

LyCORIS: the weight that a module's forward pass multiplies by (its own merge squares the scale of
LoKr). PEFT: `merge_and_unload` of what `save_pretrained` wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ltx2rt.lora.adapter import collect_updates, fuse_entry, parse_lora
from ltx2rt.lora.combine import MergeOptions, merge_loras
from ltx2rt.lora.files import Lora, open_lora
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile
from ltx2rt.weights.safetensors_writer import write_safetensors
from tests.adapter_cases import LYCORIS, PEFT
from tests.tolerances import TOLERANCES

lycoris = pytest.importorskip("lycoris.modules")
peft = pytest.importorskip("peft")

Q = "transformer_blocks.0.attn1.to_q"
FF = "transformer_blocks.1.ff.net.0.proj"
SIZES = {Q: (24, 16), FF: (32, 20)}
STRENGTHS = (1.0, 0.6, -0.5)


class Model(nn.Module):
    """Linear layers under official names."""

    def __init__(self) -> None:
        super().__init__()
        for module, (out, width) in SIZES.items():
            parent: nn.Module = self
            *path, last = module.split(".")
            for part in path:
                if not hasattr(parent, part):
                    parent.add_module(part, nn.Module())
                parent = getattr(parent, part)
            parent.add_module(last, nn.Linear(width, out))


def model() -> Model:
    torch.manual_seed(7)
    return Model()


@pytest.fixture
def base(tmp_path: Path) -> SafetensorsFile:
    """The model's tensors as a checkpoint holds them."""
    return write(tmp_path / "base.safetensors", model().state_dict())


def write(path: Path, tensors: dict[str, Any], metadata: Any = None) -> SafetensorsFile:
    arrays = {name: np.asarray(value.detach().float()) for name, value in tensors.items()}
    write_safetensors(path, arrays, metadata)
    return SafetensorsFile(path)


def merged(adapter: Path, base: SafetensorsFile, strength: float = 1.0) -> dict[str, np.ndarray]:
    """Every tensor that the adapter changes, merged in float32."""
    targets = {name: entry.shape for name, entry in base.items()}
    matched = parse_lora(open_lora(adapter), targets)
    assert matched.skipped == ()
    maps = MappedFiles()
    return {
        name: fuse_entry(maps, base[name], updates, dtype="float32", delta_dtype="float32")
        for name, updates in collect_updates([(matched, strength)]).items()
    }


def assert_close(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    assert got.keys() == want.keys()
    bound = TOLERANCES["adapter"]
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, bound.rtol, bound.atol, err_msg=name)


def fill(module: nn.Module) -> None:
    """Random numbers in every parameter of an adapter; magnitudes stay near what they are."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.3
        near = any(word in name for word in ("dora", "magnitude", "rescale"))
        parameter.data = parameter.data * (1 + 0.3 * noise) if near else noise


def lycoris_module(kind: str, name: str, linear: nn.Linear, strength: float = 1.0) -> Any:
    class_name, options = LYCORIS[kind]
    made = getattr(lycoris, class_name)
    module = made(name, linear, multiplier=strength, **options)
    fill(module)
    return module.eval()


def running_weight(module: Any, linear: nn.Linear) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of the linear layer that a module behaves as."""
    with torch.no_grad():
        bias = module(torch.zeros(1, linear.in_features))
        outputs = module(torch.eye(linear.in_features)) - bias
    return outputs.T.numpy(), bias[0].numpy()


def saved_state(module: Any) -> dict[str, torch.Tensor]:
    """What its trainer writes."""
    if type(module).__name__ == "FullModule":  # keeps differences until it is put to work
        return {"diff": module.weight, "diff_b": module.bias}
    return module.custom_state_dict() or dict(module.state_dict())


@pytest.mark.parametrize(
    ("kind", "strength"),
    [(k, s) for k in LYCORIS for s in STRENGTHS if s == 1.0 or "rescaled" not in k],
)
def test_lycoris(kind: str, strength: float, base: SafetensorsFile, tmp_path: Path) -> None:
    """Under flattened names, as its trainers save it. Strength blends DoRA with the base, where
    LyCORIS' multiplier blends it with the base and the whole update.
    """
    blends = "DoRA" in kind
    tensors: dict[str, torch.Tensor] = {}
    want: dict[str, np.ndarray] = {}
    for name in SIZES:
        linear = model().get_submodule(name)
        assert isinstance(linear, nn.Linear)
        own = linear.weight.detach().numpy().copy()
        bias = linear.bias.detach().numpy().copy()
        flat = "lycoris_" + name.replace(".", "_")
        module = lycoris_module(kind, flat, linear, 1.0 if blends else strength)
        tensors |= {f"{flat}.{key}": value for key, value in saved_state(module).items()}
        weight, new_bias = running_weight(module, linear)
        want[f"{name}.weight"] = own + strength * (weight - own) if blends else weight
        if kind == "full difference":
            want[f"{name}.bias"] = new_bias
        else:
            np.testing.assert_array_equal(new_bias, bias)
    path = tmp_path / "adapter.safetensors"
    write(path, tensors)
    assert_close(merged(path, base, strength), want)


@pytest.mark.parametrize("kind", ["OFT, rescaled", "BOFT, rescaled"])
def test_weak_rotations_are_near_the_base(kind: str, base: SafetensorsFile, tmp_path: Path) -> None:
    """LyCORIS rescales fully at any multiplier; at strength 0.001 ours changes almost nothing."""
    linear = model().get_submodule(Q)
    assert isinstance(linear, nn.Linear)
    module = lycoris_module(kind, "m", linear)
    flat = "lycoris_" + Q.replace(".", "_")
    write(tmp_path / "a.safetensors", {f"{flat}.{k}": v for k, v in saved_state(module).items()})
    (got,) = merged(tmp_path / "a.safetensors", base, 1e-3).values()
    own = linear.weight.detach().numpy()
    assert 0 < np.linalg.norm(got - own) < 5e-3 * np.linalg.norm(own)


def test_tucker_cores(base: SafetensorsFile, tmp_path: Path) -> None:
    """A core between the factors: LyCORIS writes one for convolutions, whose 1x1 case is linear."""
    from lycoris.functional import locon, loha, lokr

    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.5

    linear = model().get_submodule(Q)
    assert isinstance(linear, nn.Linear)
    out, width, rank = 24, 16, 3
    down, up, mid = random(rank, width, 1, 1), random(out, rank, 1, 1), random(rank, rank, 1, 1)
    loha_parts = [random(rank, n) for n in (width, out, width, out)]
    cores = random(rank, rank), random(rank, rank)
    w1, w2_a, w2_b = random(4, 2), random(rank, 6), random(rank, 8)
    name = "lora_unet_" + Q.replace(".", "_")
    cases = {
        "locon": (
            {"lora_down.weight": down, "lora_up.weight": up, "lora_mid.weight": mid},
            locon.diff_weight(down, up, mid, gamma=2 / rank),
        ),
        "loha": (
            dict(zip(("hada_w1_b", "hada_w1_a", "hada_w2_b", "hada_w2_a"), loha_parts, strict=True))
            | {"hada_t1": cores[0], "hada_t2": cores[1]},
            loha.diff_weight(*loha_parts, *cores, gamma=torch.tensor(2 / rank)),
        ),
        "lokr": (
            {"lokr_w1": w1, "lokr_w2_a": w2_a, "lokr_w2_b": w2_b, "lokr_t2": cores[0]},
            2 / rank * lokr.diff_weight(w1, None, None, None, w2_a, w2_b, cores[0], gamma=6),
        ),
    }
    for kind, (parts, delta) in cases.items():
        tensors = {f"{name}.{k}": v for k, v in parts.items()} | {f"{name}.alpha": torch.tensor(2)}
        path = tmp_path / f"{kind}.safetensors"
        write(path, tensors)
        want = linear.weight.detach() + delta.reshape(out, width)
        assert_close(merged(path, base), {f"{Q}.weight": want.numpy()})


def peft_adapter(kind: str, folder: Path) -> dict[str, np.ndarray]:
    """Train nothing, fill it with random numbers, save it; what the merged model then holds."""
    class_name, options = PEFT[kind]
    config = getattr(peft, class_name)(**{"target_modules": ["to_q", "proj"], **options})
    adapted = peft.get_peft_model(model(), config)
    trained = [(n, p) for n, p in adapted.named_parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in trained:
            noise = torch.randn(parameter.shape, generator=generator) * 0.3
            near = any(word in name for word in ("magnitude", "boft_s", "ia3_l"))
            parameter.copy_(parameter * (1 + 0.3 * noise) if near else noise)
    adapted.save_pretrained(folder)
    before = model().state_dict()
    after = adapted.merge_and_unload().state_dict()
    return {
        n: after[n].numpy() for n in before if n in after and not torch.equal(before[n], after[n])
    }


@pytest.fixture
def block_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT has stages of BOFT on a GPU alone, for a kernel that writes blocks on a diagonal."""

    class Kernel:
        @staticmethod
        def forward(blocks: torch.Tensor) -> list[torch.Tensor]:
            return [torch.stack([torch.block_diag(*stage) for stage in blocks])]

    monkeypatch.setattr("peft.tuners.boft.layer._FBD_CUDA", Kernel())


@pytest.mark.parametrize("kind", PEFT)
@pytest.mark.usefixtures("block_diagonal")
def test_peft(kind: str, base: SafetensorsFile, tmp_path: Path) -> None:
    want = peft_adapter(kind, tmp_path / "adapter")
    assert {name for name in want if name.endswith(".weight")} == {
        f"{name}.weight" for name in SIZES if "three stages" not in kind or name == Q
    }
    assert len(want) == (4 if "bias" in kind else 3 if "(IA)" in kind else len(want))
    assert_close(merged(tmp_path / "adapter", base), want)
    for name, value in merged(tmp_path / "adapter", base, 1e-3).items():
        own = MappedFiles().load(base[name], "float32")
        assert np.linalg.norm(value - own) < 0.02 * np.linalg.norm(want[name] - own), name


def test_dora_made_for_comfyui(base: SafetensorsFile, tmp_path: Path) -> None:
    """ComfyUI divides by norms of the base: converters scale the magnitudes by base / updated norm,
    so that it comes out right. Recognised by ComfyUI's names.
    """
    want = peft_adapter("DoRA, a magnitude an output", tmp_path / "adapter")
    file, maps = SafetensorsFile(tmp_path / "adapter" / "adapter_model.safetensors"), MappedFiles()
    tensors = {}
    for name in SIZES:
        stem = f"base_model.model.{name}"
        a, b, m = (
            torch.tensor(maps.load(file[f"{stem}.{part}"], "float32"))
            for part in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
        )
        own = torch.tensor(maps.load(base[f"{name}.weight"], "float32"))
        b = b * (2 / 4)  # alpha / rank, which the converter folds in
        norms = [w.norm(dim=1) for w in (own, own + b @ a)]
        new = f"diffusion_model.{name}"
        tensors |= {f"{new}.lora_A.weight": a, f"{new}.lora_B.weight": b}
        tensors[f"{new}.dora_scale"] = (m * norms[0] / norms[1])[:, None]
    write(tmp_path / "x.comfy.safetensors", tensors)
    assert_close(merged(tmp_path / "x.comfy.safetensors", base), want)


def test_the_written_file_does_the_same(base: SafetensorsFile, tmp_path: Path) -> None:
    """`lora merge` of one adapter of any kind: plain LoRAs and differences that merge to the same
    weights; only kinds that depend on the model need it.
    """
    maps = MappedFiles()

    def tensor(name: str) -> np.ndarray | None:
        return maps.load(base[name], "float32") if name in base else None

    for i, kind in enumerate(LYCORIS):
        tensors: dict[str, torch.Tensor] = {}
        for name in SIZES:
            linear = model().get_submodule(name)
            assert isinstance(linear, nn.Linear)
            flat = "lycoris_" + name.replace(".", "_")
            module = lycoris_module(kind, flat, linear)
            tensors |= {f"{flat}.{k}": v for k, v in saved_state(module).items()}
        path, out = tmp_path / f"{i}.safetensors", tmp_path / f"{i}.out.safetensors"
        write(path, tensors)
        lora = [Lora(path=str(path), strength=0.7)]
        merge_loras(lora, out, MergeOptions(), tensor)
        assert all(
            n.endswith((".lora_A.weight", ".lora_B.weight", ".diff", ".diff_b"))
            for n in SafetensorsFile(out)
        )
        assert_close(merged(out, base), merged(path, base, 0.7))
