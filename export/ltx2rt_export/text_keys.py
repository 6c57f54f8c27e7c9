"""Keys of a transformer's configuration that say how its text features are projected."""

from __future__ import annotations

#: keys of the transformer configuration that only V2 files have, with the values they must have
V2_KEYS = {
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_proj_input_norm": False,
    "caption_projection_second_linear": False,
}
