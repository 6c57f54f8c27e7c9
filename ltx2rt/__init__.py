"""Run compiled LTX-2 audio-video diffusion models without PyTorch.

    import ltx2rt
    bundle = ltx2rt.open_bundle("ltx23.bundle")
    with ltx2rt.DistilledPipeline(bundle) as pipe:
        pipe(prompt="...", seed=42).save("out.mp4")

The public names are those of `__init__.pyi`. Each is loaded when first used, so `import ltx2rt` is
instant.
"""

import importlib

__version__ = "0.1.0"

#: public name -> the module that defines it, from the lines `from MODULE import NAME as NAME`
_HOMES = {
    words[3]: words[1]
    for words in map(str.split, __spec__.loader.get_data(f"{__file__}i").decode().splitlines())
    if words[:1] == ["from"]
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module 'ltx2rt' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__():
    return sorted(__all__)
