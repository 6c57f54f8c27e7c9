"""The adapters that tests load, as data: docs/files.md is written from it."""

from __future__ import annotations

from typing import Any

#: kind -> a module of LyCORIS and its options (tests/parity/test_adapters.py)
LYCORIS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoCoN": ("LoConModule", {"lora_dim": 4, "alpha": 2}),
    "LoCoN, rsLoRA": ("LoConModule", {"lora_dim": 4, "alpha": 2, "rs_lora": True}),
    "LoHa": ("LohaModule", {"lora_dim": 3, "alpha": 1}),
    "LoKr, both factors whole": ("LokrModule", {"lora_dim": 99, "alpha": 5, "factor": 4}),
    "LoKr, one factor a product": ("LokrModule", {"lora_dim": 2, "alpha": 1, "factor": 4}),
    "LoKr, both factors products": (
        "LokrModule", {"lora_dim": 1, "alpha": 3, "factor": 4, "decompose_both": True},
    ),
    "DoRA, a magnitude an output": ("LoConModule", {"lora_dim": 4, "weight_decompose": True}),
    "DoRA, a magnitude an input": (
        "LoConModule", {"lora_dim": 4, "weight_decompose": True, "wd_on_out": False},
    ),
    "DoRA of LoHa": ("LohaModule", {"lora_dim": 2, "weight_decompose": True}),
    "DoRA of LoKr": ("LokrModule", {"lora_dim": 2, "factor": 4, "weight_decompose": True}),
    "OFT": ("DiagOFTModule", {"lora_dim": 4}),
    "OFT, bounded": ("DiagOFTModule", {"lora_dim": 4, "constraint": 0.01}),
    "OFT, rescaled": ("DiagOFTModule", {"lora_dim": 4, "rescaled": True}),
    "BOFT": ("ButterflyOFTModule", {"lora_dim": 8}),
    "BOFT, rescaled": ("ButterflyOFTModule", {"lora_dim": 8, "rescaled": True}),
    "full difference": ("FullModule", {}),
    "GLoRA": ("GLoRAModule", {"lora_dim": 3, "alpha": 2}),
    "(IA)^3, outputs": ("IA3Module", {}),
    "(IA)^3, inputs": ("IA3Module", {"train_on_input": True}),
}  # fmt: skip
#: kind -> a configuration of PEFT and its options (the same file)
PEFT: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA": ("LoraConfig", {"r": 4, "lora_alpha": 2}),
    "LoRA, rsLoRA": ("LoraConfig", {"r": 4, "lora_alpha": 2, "use_rslora": True}),
    "LoRA, ranks and alphas by module": (
        "LoraConfig",
        {
            "r": 4, "lora_alpha": 2, "rank_pattern": {"to_q": 2},
            "alpha_pattern": {"ff.net.0.proj": 6},
        },
    ),
    "LoRA, lora_bias": ("LoraConfig", {"r": 4, "lora_alpha": 2, "lora_bias": True}),
    "LoRA, trained biases": ("LoraConfig", {"r": 4, "lora_alpha": 2, "bias": "lora_only"}),
    "DoRA, a magnitude an output": ("LoraConfig", {"r": 4, "lora_alpha": 2, "use_dora": True}),
    "LoHa": ("LoHaConfig", {"r": 3, "alpha": 2}),
    "LoKr, both factors whole": ("LoKrConfig", {"r": 64, "alpha": 96, "decompose_factor": 4}),
    "LoKr, one factor a product": ("LoKrConfig", {"r": 2, "alpha": 3, "decompose_factor": 4}),
    "LoKr, both factors products": (
        "LoKrConfig", {"r": 1, "alpha": 3, "decompose_factor": 4, "decompose_both": True},
    ),
    "OFT of inputs": ("OFTConfig", {"oft_block_size": 4, "use_cayley_neumann": False}),
    "OFT of inputs, a series": ("OFTConfig", {"oft_block_size": 4}),
    "OFT of inputs, a short series": (
        "OFTConfig", {"oft_block_size": 4, "num_cayley_neumann_terms": 2},
    ),
    "OFT of inputs, a long series": (
        "OFTConfig", {"oft_block_size": 4, "num_cayley_neumann_terms": 7},
    ),
    "OFT of inputs, bounded": ("OFTConfig", {"oft_block_size": 4, "coft": True, "eps": 0.5}),
    "OFT of inputs, one block for all": (
        "OFTConfig", {"oft_block_size": 4, "block_share": True, "use_cayley_neumann": False},
    ),
    "BOFT of inputs": ("BOFTConfig", {"boft_block_size": 4}),
    "BOFT of inputs, two stages": (
        "BOFTConfig", {"boft_block_size": 2, "boft_n_butterfly_factor": 2},
    ),
    "BOFT of inputs, three stages": (
        "BOFTConfig",
        {"boft_block_size": 4, "boft_n_butterfly_factor": 3, "target_modules": ["to_q"]},
    ),
    "AdaLoRA": (
        "AdaLoraConfig", {"init_r": 4, "target_r": 2, "lora_alpha": 8, "total_step": 10},
    ),
    "(IA)^3": (
        "IA3Config", {"target_modules": ["to_q", "proj"], "feedforward_modules": ["proj"]},
    ),
}  # fmt: skip
#: kinds without a trainer to compare with -> the tensors that are written and compared by hand
BY_HAND: dict[str, str] = {
    "Tucker cores": "`lora_mid`, `hada_t1`, `hada_t2`, `lokr_t2` against LyCORIS' functions",
    "DoRA for ComfyUI": "`dora_scale` beside ComfyUI's names: converted from PEFT's, same weights",
    "biases, norms, tables": "`diff`, `diff_b`, `w_norm`, `b_norm`, `lora_B.bias`, whole tensors",
    "replaced weight": "`set_weight`",
    "scaled FP8 and INT8": "`weight_scale`, `scale_weight` beside factors",
}
#: begin of a kind -> its tensors, the longest that fits
TENSORS: dict[str, str] = {
    "LoRA": "`lora_A`, `lora_B`",
    "AdaLoRA": "`lora_A`, `lora_B`, `lora_E`, with `adapter_config.json` beside the file",
    "LoCoN": "`lora_down`, `lora_up`",
    "LoHa": "`hada_w1_a`, `hada_w1_b`, `hada_w2_a`, `hada_w2_b`",
    "LoKr": "`lokr_w1` or `lokr_w1_a`, `lokr_w1_b`; `lokr_w2` or `lokr_w2_a`, `lokr_w2_b`",
    "DoRA": "those of the update, `dora_scale` or `lora_magnitude_vector`",
    "OFT": "`oft_blocks`, `rescale`",
    "OFT of inputs": "`oft_R`, with `adapter_config.json` beside the file",
    "BOFT": "`oft_blocks`, `rescale`",
    "BOFT of inputs": "`boft_R`, `boft_s`",
    "full": "`diff`, `diff_b`",
    "GLoRA": "`a1`, `a2`, `b1`, `b2`",
    "(IA)^3": "`ia3_l`; `weight`, `on_input`",
}
#: refused kind (`lora.suffixes.UNSUPPORTED`, `lora.peft_config.REFUSED`) -> why
REFUSED: dict[str, str] = {
    "OFT of musubi-tuner": "not done yet: its own numbers beside the blocks say how they turn",
    "a magnitude of musubi-tuner's DoRA-OFT": "belongs to it",
    "OFT of PEFT before 0.14 (oft_r)": "PEFT does not read it any more",
    "OFT of PEFT before 0.18, made by a series": "its series was another one; PEFT warns of it",
    "OFT of PEFT or AdaLoRA without its adapter_config.json": "which says how blocks are read, and "
    "how strong ranks are",
    "GLoRA of PEFT": "not done yet: another GLoRA than that of LyCORIS, of up to five parts",
    "GLoRA of a convolution (bm)": "this model has none",
    "VeRA or RandLoRA": "its random matrices need not be in the file",
    "T-LoRA": "changes with the noise level: it is no one change of a weight",
    "LoRA of an embedding": "this model has none",
    "a LoRA that changes its layer's size (reshape_weight)": "engines have one size",
    "another kind of PEFT (peft_type)": "HRA, FourierFT, X-LoRA, ...: named as the file names it",
    "PiSSA, CorDA, OLoRA, LoftQ, LoRA-GA (init_lora_weights)": "begun so, the base was changed "
    "with the adapter; PEFT's `path_initial_model_for_weight_conversion` saves it as a LoRA",
    "variants of PEFT's LoRA (use_qalora, use_bdlora, ...)": "not done yet: another arithmetic "
    "under LoRA's names",
}


def official(module: str) -> str:
    return f"diffusion_model.{module}"


def flat(module: str) -> str:
    return module.replace(".", "_")


#: how trainers spell a module, and the two halves if not `.lora_A.weight` and `.lora_B.weight`
NAMINGS: dict[str, tuple[Any, ...]] = {
    "official / ComfyUI": (official,),
    "ComfyUI, down and up": (official, ".lora_down.weight", ".lora_up.weight"),
    "with model.": (lambda m: f"model.diffusion_model.{m}",),
    "bare (DiffSynth)": (lambda m: m, ".lora_A.default.weight", ".lora_B.default.weight"),
    "compiled model": (lambda m: f"diffusion_model._orig_mod.{m}",),
    "module.": (lambda m: f"module.{m}",),
    "unet.": (lambda m: f"unet.{m}",),
    "dit.": (lambda m: f"dit.{m}",),
    "pipe.dit.": (lambda m: f"pipe.dit.{m}",),
    "velocity_model.": (lambda m: f"velocity_model.{m}",),
    "PEFT": (lambda m: f"base_model.model.{m}",),
    "PEFT of a diffusers pipeline": (lambda m: f"transformer.base_model.model.{m}",),
    "diffusers": (lambda m: f"transformer.{m}",),
    "diffusers, old": (lambda m: f"transformer.{m}", ".lora.down.weight", ".lora.up.weight"),
    "diffusers, attention processors": (
        lambda m: "transformer." + m.removesuffix(".0").replace(".to_", ".processor.to_"),
        "_lora.down.weight", "_lora.up.weight",
    ),
    "without .weight": (official, ".lora_A", ".lora_B"),
    "kohya / musubi-tuner": (
        lambda m: f"lora_unet_{flat(m)}", ".lora_down.weight", ".lora_up.weight",
    ),
    "musubi-tuner, wrapped": (
        lambda m: f"lora_unet_model_{flat(m)}", ".lora_down.weight", ".lora_up.weight",
    ),
    "lora_transformer_": (
        lambda m: f"lora_transformer_{flat(m)}", ".lora_down.weight", ".lora_up.weight",
    ),
    "LyCORIS": (lambda m: f"lycoris_{flat(m)}", ".lora_down.weight", ".lora_up.weight"),
}  # fmt: skip
