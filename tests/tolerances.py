"""The only home of tolerances: (what is compared) -> bound, and why.

An element passes when `|got - want| <= atol + rtol * |want|`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ltx2rt.weights.precision import PRECISIONS


@dataclass(frozen=True, slots=True)
class Tolerance:
    atol: float
    rtol: float
    why: str


TOLERANCES: dict[str, Tolerance] = {
    "exact": Tolerance(0.0, 0.0, "bit patterns and integers"),
    "scalar": Tolerance(1e-6, 1e-6, "coordinates, masks, sigma tables: one float32 rounding"),
    "net": Tolerance(1e-4, 1e-4, "one network; official fp32 against fp64 differs by 1e-7 to 6e-6"),
    "dit": Tolerance(1.5e-4, 1.5e-4, "RoPE's top frequency turns a float32 ulp into 1e-3 rad"),
    "deep": Tolerance(5e-4, 1e-3, "Gemma, vocoders and chains of networks"),
    "rope": Tolerance(2e-3, 0.0, "cos/sin tables at real sizes: one ulp of the angle is 1e-3"),
    "bf16": Tolerance(1e-3, 8e-3, "one bfloat16 ulp is 2^-8 relative"),
    "adapter": Tolerance(3e-6, 3e-6, "one float32 product and sum, in another order"),
    "json": Tolerance(1e-6, 1e-6, "tables of plain numbers"),
}

#: (component of a golden case, output) -> bound, where one output has another than the case's class
OUTPUT_TOLERANCES: dict[tuple[str, str], Tolerance] = {
    ("fp8", "cast.linear_f32"): Tolerance(1e-5, 1e-5, "another summation order in float32"),
    ("fp8", "scaled.linear_bf16"): Tolerance(0.0, 2**-8, "which side of a bfloat16 rounding"),
}

#: ONNX Runtime against our module, float32, per component (docs/debug_accuracy.md, rung 2). Its
#: home is the row of the precision, which `ltx2rt verify` reads. Measured 1e-7 to 6e-6: another
#: summation order in convolutions and softmax.
ORT_REL_RMS = PRECISIONS["fp32"].tolerance

#: Whole pipelines, float32 (goldens' own noise floor: latents 2e-6, frames and waveform 1.5e-5).
PIPELINE_LATENT_REL_L2 = 2e-4  # what RoPE evaluated in another order may cost
PIPELINE_FRAME_MAX = 2e-3
PIPELINE_FRAME_MEAN = 1e-4
PIPELINE_WAVEFORM_MAX = 1e-3


@dataclass(frozen=True, slots=True)
class Bound:
    bound: float
    why: str


#: The distilled pipeline through the device code on the simulated GPU against ONNX Runtime, by
#: precision: relative L2 of the latents. Engines compute in float32; what differs is the boundary
#: and the weights. That the device adds nothing is a test of equal bits.
SIMULATED_LATENT_REL_L2: dict[str, Bound] = {
    "fp32": Bound(5e-6, "other graph rewrites: summation orders; measured 2.0e-7"),
    "fp16": Bound(1e-3, "boundaries of the transformer in float16; measured 2.9e-4"),
    "bf16": Bound(8e-3, "boundaries of the transformer in bfloat16; measured 2.6e-3"),
    "fp8": Bound(6e-2, "as `FP8_DEMO_LATENT_REL_L2`; measured 2.7e-2"),
    "int8-wo": Bound(2e-2, "weights of a scale a channel in 8 bits; measured 8.3e-3"),
    "int4-wo": Bound(0.3, "blocks of 128 in 4 bits, on tiny widths; measured 1.3e-1"),
    "bf16 --text-precision int4-wo": Bound(5e-2, "bf16, on contexts that moved by 1.8e-2"),
}

#: The same of guided rows, whose guidance (3 times the prompt's, 1 of skipped attention, 3 of the
#: other modality) multiplies differences between passes.
SIMULATED_GUIDED_REL_L2: dict[str, Bound] = {
    "bf16": Bound(3e-2, "measured up to 1.1e-2"),
    "fp8": Bound(0.3, "measured up to 1.4e-1, on an untrained model of tiny widths"),
    "int8-wo": Bound(6e-2, "measured up to 1.6e-2"),
}

#: Memory-bound kernels and function bodies against their float32 reference on the same rounded
#: inputs: relative RMS per dtype of the result.
KERNEL_REL_RMS: dict[str, Bound] = {
    "fp32": Bound(1e-6, "float32 inside, another summation order; measured up to 1e-7"),
    "fp16": Bound(4e-4, "one rounding: half an ulp is 2^-11 relative, uniform; measured 2.1e-4"),
    "bf16": Bound(
        3e-3, "one rounding: half an ulp is 2^-8 relative, uniform; measured up to 2.1e-3"
    ),
}

#: Attention kernels against their float32 reference on the same rounded inputs: relative RMS.
ATTENTION_REL_RMS: dict[str, Bound] = {
    "fp32": Bound(1e-6, "float32 inside, another summation order; measured 1e-7"),
    "fp16": Bound(5e-4, "weights and result are rounded once each; measured 2.9e-4"),
    "bf16": Bound(4e-3, "weights and result are rounded once each; measured 2.3e-3"),
}

#: 8-bit attention against float32 attention, on inputs with outlier channels and drifting keys.
FP8_ATTENTION_REL_RMS: dict[str, Bound] = {
    "v16": Bound(6e-2, "E4M3 q and k: 2.6 % an element; scores of long rows; measured 2.8e-2"),
    "v8": Bound(8e-2, "E4M3 weights and values besides, 2.6 % each; measured 4.7e-2"),
}

#: 8-bit attention on a GPU against the reference that rounds at the same places.
FP8_GPU_REL_RMS = Bound(
    1e-2,
    "E4M3 weights near the middle of two codes go to the other one: 8.9 cuts them to float16 first "
    "(6.2e-3, emulated), 9.0 cuts the products of scores at 14 bits (up to 5.5e-3, emulated)",
)

#: E4M3 codes of a kernel against the reference's: share that may differ, by one code.
FP8_CODE_MISMATCH = Bound(
    8e-3,
    "a float32 ulp moves a value across a rounding boundary, where bfloat16 inputs sit often; "
    "measured up to 1e-3. On 8.9 Triton cuts to float16 first, which adds up to 4.1e-3 (emulated)",
)

#: A quantised block graph in float32 against its emulation: the same codes, other summation orders.
#: Measured 0 to 4e-7; a code that fell the other way would cost 1e-4 and more.
QUANT_GRAPH_REL_RMS = 5e-6

#: What one tiny block (random weights and inputs, widths 64 and 32) loses to a precision, float32
#: elsewhere: (least, most). The least shows that it does something. Measured: tests print nothing,
#: `python -m benchmarks.run --case quality` has the table.
QUANT_LOSS = {
    "fp8": (0.02, 0.09),
    "fp8-static": (0.02, 0.12),
    "nvfp4": (0.05, 0.3),
    "nvfp4-static": (0.05, 0.4),
    "int8-wo": (0.002, 0.015),
    "int8": (0.005, 0.04),
    "int4-wo": (0.05, 0.2),
}

#: Contexts of the demo model's prompts whose text encoder is quantised, against those in float32:
#: relative RMS. Measured 9.2e-3 with FP8 (W8A8) layers, 7.0e-3 with INT8 (INT4, from its codec:
#: 1.8e-2), the projections and connectors in INT8 each time.
TEXT_PRECISION_REL_RMS = {"fp8": 0.02, "int8-wo": 0.015}

#: A 16-bit graph may lose this much more against float32 than PyTorch loses in the same dtype
#: (spec/transformer.md §17: engines round in other places).
QUANT_ROUNDING = 1.5

#: bfloat16 PyTorch on one tiny block against float32: 2^-9 a rounding, some 30 roundings in a row.
BF16_REL_RMS = 0.02

#: Velocities of the tiny transformer with 8-bit video self-attention against float32: relative RMS.
FP8_BLOCK_REL_RMS = 2e-2  # 5 % of one of six attentions' update a block
#: FP8 on two of the demo model's three blocks, whole distilled clip. Measured 2.5e-2.
FP8_DEMO_LATENT_REL_L2 = 6e-2
#: INT8 arithmetic on two of the demo model's three blocks, whole distilled clip. Measured 5e-3.
INT8_DEMO_LATENT_REL_L2 = 3e-2

#: LoRAs as inputs against merged ones, whole clip: merging rounds the factors, the delta and the
#: weight to bfloat16 (spec/lora.md §2 gives 3.5e-3 on a toy), the inputs round nothing.
LORA_INPUTS_REL_L2 = 1e-2

#: Transformer whose engines take and give bfloat16 (float32 inside) against float32 throughout:
#: relative RMS of a velocity on the tiny model of two blocks.
BF16_BOUNDARY = Bound(1e-2, "roundings of 2^-9 at inputs and hidden states; measured 5.3e-3")
