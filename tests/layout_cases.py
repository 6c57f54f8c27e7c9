"""The layouts of checkpoints and encoders that tests load, as data: docs/files.md is written from
it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """One layout: how it is given, what its tests are, or why it is refused.

    `test` is a case of tests/parity/test_layouts.py: the same tiny model must come out of it.
    """

    name: str
    given: str
    tested: str = ""
    refused: str = ""
    test: str = ""


SAME = "the same components as the official file: networks, facts, every weight bit for bit"
LAYOUTS: tuple[Layout, ...] = (
    Layout("official single file (LTX-2, LTX-2.3)", "`--checkpoint FILE --gemma DIR`",
           "golden cases, both backends", test="monolith"),
    Layout("official split set (LTX-2.5)", "`--checkpoint`, `--text-encoder`, `--video-vae`, "
           "`--audio-vae`, `--duration-head`", "golden cases, both backends"),
    Layout("several files (shards)", "any shard, the index, or the folder", SAME, test="shards"),
    Layout("repacks without `model.` or metadata", "as the official file", SAME, test="repack"),
    Layout("splits of ComfyUI and Kijai", "as the official split set; connectors and projections "
           "as `--text-encoder`", SAME, test="comfy"),
    Layout("DiffSynth-Studio's parts (encoder and decoder apart)", "their folder as "
           "`--checkpoint`; or one by one, `--audio-vae` once for each of its parts", SAME,
           test="diffsynth"),
    Layout("fine-tune of the transformer alone", "`--checkpoint FILE`, the official file as "
           "`--text-encoder`, `--video-vae` and `--audio-vae`", SAME, test="fine-tune"),
    Layout("diffusers folder (LTX-2.3 and LTX-2.5 as a whole, LTX-2 part by part)",
           "`--checkpoint DIR`, Gemma is inside",
           f"diffusers' own modules write it; {SAME}", test="diffusers"),
    Layout("what folders of LTX-2.5 have besides: `duration_head`, `diffusion_decoder`",
           "the first with `--checkpoint DIR`; the second, with the encoder of `vae` beside it, as "
           "`--video-vae DIR/diffusion_decoder` (without, clips are decoded by the conv VAE of "
           "`vae`); its weights are not those of the official file",
           "diffusers' own modules (0.42.1) write them, and ours compute the same; at the sides of "
           "a picture windows are those of the official decoder, which diffusers shifts inward "
           "(tests/parity/test_diffusers_25.py)"),
    Layout("mlx-video's converted folder (`transformer`, `vae`, `audio_vae`, `vocoder`, "
           "`text_projections`)", "`--checkpoint DIR`; Gemma is inside where `text_encoder` is",
           f"{SAME}, from a folder written by its converter's rules; it has no encoder of sound, "
           "and its transformer is bfloat16 throughout", test="mlx-video"),
    Layout("parts of a diffusers folder, or a `diffusion_pytorch_model` file", "as the part that "
           "it is", "the same names and weights as from the whole folder"),
    Layout("GGUF transformer (Q2_K to Q6_K, Q4_0 to Q8_0, IQ4, F16, BF16; extra `gguf`)",
           "`--checkpoint FILE`, the official file as `--text-encoder`, `--video-vae` and "
           "`--audio-vae`", "files that the `gguf` package writes: every weight as it decodes them "
           "(tests/parity/test_gguf.py); decoded into the bundle, a tensor at a time"),
    Layout("the official NVFP4 transformer of LTX-2.5, whose header does not say that it is "
           "quantised", "`--checkpoint FILE`", "its names, types, shapes and size in a sparse "
           "file: 1,176 layers, carried over bit by bit (tests/parity/test_released_models.py)"),
    Layout("INT8 ConvRot of ComfyUI and musubi-tuner", "as the part that it is",
           "decoded and rotated back when weights are loaded (tests/unit/test_stored.py)"),
    Layout("single-file Gemma 3 of ComfyUI (`spiece_model`; bf16, FP8, INT8, NVFP4; extra "
           "`sentencepiece`)", "`--gemma FILE` or `--text-encoder FILE`", "the same components as "
           "the folder, or what the codes stand for; the tokens that SentencePiece itself finds "
           "(tests/parity/test_gemma_single.py)"),
    Layout("Gemma 3 of bitsandbytes (NF4 and FP4, scales coded or not; LLM.int8)", "`--gemma DIR` "
           "or FILE", "what its arithmetic gives (tests/parity/test_gemma_single.py; "
           "bitsandbytes 0.50's own when it was written: NF4 and FP4 bit for bit, LLM.int8 within "
           "1.5e-8)"),
    Layout("GGUF of Gemma 3 (llama.cpp; extra `gguf`)", "`--gemma FILE`", "files that the `gguf` "
           "package writes: names, norms less one, tokenizer from its vocabulary "
           "(tests/parity/test_gemma_single.py)"),
    Layout("GGUF of Gemma 4 (llama.cpp; extra `gguf`)", "`--gemma FILE`, beside the official "
           "`--text-encoder`, whose projections it lacks", "files that the `gguf` package writes "
           "by its names: the same configuration, weights and tokens as the packed file "
           "(tests/parity/test_gemma4_gguf.py); it does not say whether it is the fine-tune that "
           "LTX-2.5 takes: a warning says so; no published file was at hand"),
    Layout("GGUF of the small models of Gemma 4, and of those of experts", "", refused="no encoder "
           "of LTX-2.5: shared keys, embeddings a layer, experts"),
    Layout("GGUF in IQ1, IQ2, IQ3, MXFP4 and other formats", "", refused="no transformer in them "
           "is known"),
    Layout("W4A4 and other packed INT4", "", refused="not done yet: refused as an "
           "unknown 4-bit format"),
    Layout("`latent_upsampler`, `transformer_full` of a diffusers folder",
           "", refused="left out with a warning that says what to give instead; beside the second, "
           "`transformer` counts as distilled"),
    Layout("a folder of mlx-video quantised for MLX", "", refused="not done yet: codes of a format "
           "of its own; the official file is quantised by `ltx2rt build --precision`"),
)  # fmt: skip
