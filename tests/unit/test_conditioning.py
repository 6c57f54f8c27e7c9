from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltx2rt.errors import OptionError, ShapeError
from ltx2rt.latents.conditioning import (
    GeneratedKeyframes,
    Keyframe,
    ReferenceAudio,
    ReferenceVideo,
    ReplaceLatent,
    TemporalRegion,
    apply_items,
    attention_bias,
    drop_appended,
    keyframe_indices,
    make_audio_state,
    make_video_state,
    mask_latent,
    slot_latents,
    subsample_indices,
    target_latent,
)
from ltx2rt.latents.shapes import AudioLatentShape, VideoLatentShape

SHAPE = VideoLatentShape(num_frames=3, height=2, width=3)
FPS = 24.0


def latent(frames=1, height=2, width=3, seed=0):
    values = np.random.default_rng(seed).standard_normal((1, 128, frames, height, width))
    return values.astype(np.float32)


def fresh(**kwargs):
    return make_video_state(SHAPE, FPS, **kwargs)


def test_fresh_state():
    state = fresh()
    assert not state.latent.any()
    assert (state.mask == 1).all()
    assert state.attention_mask is None
    assert state.keyframes_mask[0, :, 0].tolist() == [1.0] * 6 + [0.0] * 12
    initial = latent(3)
    assert np.array_equal(target_latent(fresh(initial=initial)), initial)


def test_initial_latent_of_another_shape_is_refused():
    with pytest.raises(ShapeError, match="initial latent"):
        fresh(initial=latent(2))


def test_replace_sets_clean_and_mask_only():
    image = latent()
    state = ReplaceLatent(latent=image, strength=0.75, latent_index=1).apply(fresh())
    assert np.array_equal(state.clean[0, 6:12].T.reshape(128, 2, 3), image[0, :, 0])
    assert (state.mask[0, :, 0] == np.repeat(np.float32([1, 0.25, 1]), 6)).all()
    assert not state.latent.any()


@pytest.mark.parametrize(
    "item",
    [
        ReplaceLatent(latent=latent(height=1)),
        ReplaceLatent(latent=latent(2), latent_index=2),
        ReplaceLatent(latent=latent(), latent_index=-1),
        Keyframe(latent=np.zeros((1, 64, 1, 2, 3), np.float32), frame_index=0),
    ],
)
def test_items_that_do_not_fit_are_refused(item):
    with pytest.raises(ShapeError):
        item.apply(fresh())


@pytest.mark.parametrize("index", [0, 13, 500])
def test_keyframe_covers_one_pixel_frame(index):
    state = Keyframe(latent=latent(), frame_index=index, strength=0.5).apply(fresh())
    times = state.positions[0, 0, 18:]
    assert (times == np.float32([index, index + 1]) / np.float32(FPS)).all()
    assert (state.mask[0, 18:] == 0.5).all()
    assert not state.keyframes_mask[0, 18:].any()
    assert not state.latent[0, 18:].any()


def test_clip_keyframe_keeps_its_own_length():
    state = Keyframe(latent=latent(2), frame_index=8).apply(fresh())
    times = state.positions[0, 0, 18::6] * FPS
    np.testing.assert_allclose(times, [[8, 16], [16, 24]], rtol=1e-6)  # one float32 rounding


def test_reference_positions_are_stretched():
    item = ReferenceVideo(latent=latent(2, 1, 1), downscale=2, temporal_scale=2)
    state = item.apply(fresh())
    times = state.positions[0, 0, 18:] * FPS
    np.testing.assert_allclose(times, [[0, 1], [1, 17]], atol=1e-5)  # float32 seconds times 24
    assert state.positions[0, 1:, 18].tolist() == [[0.0, 64.0], [0.0, 64.0]]


def test_reference_audio_ends_before_the_clip():
    reference = np.random.default_rng(0).standard_normal((1, 8, 5, 16)).astype(np.float32)
    state = make_audio_state(AudioLatentShape(num_frames=4))
    state = ReferenceAudio.before_start(reference).apply(state)
    ends = state.positions[0, 0, 4:, 1]
    assert ends[-1] == np.float32(-0.04)
    assert (ends < 0).all()
    assert state.keyframes_mask is None
    assert np.array_equal(state.clean[0, 4], reference[0, :, 0].reshape(-1))


def test_attention_mask_growth():
    """Groups see the target with their own strength, themselves fully, and each other not."""
    weights = np.float32([0.2, 0.4, 0.6])
    state = apply_items(
        fresh(),
        [
            Keyframe(latent=latent(), frame_index=0),  # no strength, no mask yet
            ReferenceVideo(latent=latent(3, 1, 1), attention_strength=weights),
            Keyframe(latent=latent(1, 1, 1), frame_index=8),  # extends with strength 1
        ],
    )
    mask = state.attention_mask[0]
    assert mask.shape == (28, 28)
    assert np.array_equal(mask, mask.T)
    assert (mask[:24, :24] == 1).all()
    assert (mask[:18, 24:27] == weights).all()
    assert (mask[18:24, 24:] == 0).all()
    assert (mask[24:27, 24:27] == 1).all()
    assert (mask[:18, 27] == 1).all()
    assert mask[27, 27] == 1
    assert (mask[24:27, 27] == 0).all()
    bias = attention_bias(mask)
    assert bias[0, 0] == 0
    assert bias[18, 24] == np.finfo(np.float32).min
    assert bias[0, 24] == np.log(np.float32(0.2))


def test_attention_strength_of_wrong_length_is_refused():
    with pytest.raises(ShapeError, match="strengths"):
        Keyframe(latent=latent(), frame_index=0, attention_strength=np.ones(5, np.float32)).apply(
            fresh()
        )


@given(st.floats(0, 1.0), st.floats(0, 1.0))
def test_temporal_region_marks_touching_tokens(start, length):
    state = TemporalRegion(start_s=start, end_s=start + length).apply(fresh())
    bounds = state.positions[0, 0]
    inside = (bounds[:, 1] > np.float32(start)) & (bounds[:, 0] < np.float32(start + length))
    assert np.array_equal(state.mask[0, :, 0] == 1, inside)
    assert set(np.unique(state.mask)) <= {0.0, 1.0}


def test_generated_slots_round_trip():
    seeds = latent(2)
    state = GeneratedKeyframes(frame_indices=[4, 11], latents=seeds).apply(fresh())
    assert np.array_equal(slot_latents(state), seeds)
    assert state.keyframes_mask[0, 18:].all()
    assert (state.mask == 1).all()
    assert not state.clean.any()
    target = drop_appended(state)
    assert target.token_count == 18
    assert slot_latents(target) is None
    assert target_latent(state).shape == SHAPE.sizes


@pytest.mark.parametrize("indices", [[], [4, 4], [5, 3], [-1], [17]])
def test_bad_slots_are_refused(indices):
    with pytest.raises(OptionError, match=r"0\.\.16"):
        GeneratedKeyframes(frame_indices=indices).apply(fresh())


def test_second_slot_item_is_refused():
    item = GeneratedKeyframes(frame_indices=[3])
    with pytest.raises(OptionError, match="two"):
        apply_items(fresh(), [item, item])


def test_keyframe_indices():
    assert keyframe_indices(3, 121) == [30, 60, 90]
    assert keyframe_indices(2, 9) == [3, 5]
    assert keyframe_indices(0, 9) == keyframe_indices(0, 1) == []
    assert keyframe_indices([8, 2, 8], 9) == [2, 8]
    with pytest.raises(OptionError, match="generated_keyframes=10 is not in"):
        keyframe_indices(10, 9)
    with pytest.raises(OptionError, match=r"0\.\.8"):
        keyframe_indices([9], 9)


@given(st.integers(0, 20), st.integers(22, 300))
def test_spread_keyframes_are_valid_slots(count, frames):
    indices = keyframe_indices(count, frames)
    assert len(set(indices)) == count
    assert all(0 < i < frames - 1 for i in indices)


def test_subsample_indices():
    assert subsample_indices(9, 2) == [0, 1, 3, 5, 7]
    assert subsample_indices(4, 1) == [0, 1, 2, 3]


def test_mask_latent_averages_boxes_and_groups():
    mask = np.zeros((1, 1, 17, 4, 6), np.float32)
    mask[0, 0, 0, :2, :2] = 1  # first frame alone: one whole cell
    mask[0, 0, 1:5] = 1  # half of the first group
    got = mask_latent(mask, SHAPE).reshape(3, 2, 3)
    assert got[0].tolist() == [[1, 0, 0], [0, 0, 0]]
    assert (got[1] == 0.5).all()
    assert (got[2] == 0).all()
    with pytest.raises(ShapeError, match="does not divide"):
        mask_latent(mask[:, :, :16], SHAPE)
    still = mask_latent(mask[:, :, :1], SHAPE).reshape(3, 2, 3)
    assert (still == got[0]).all()  # an image holds all the time


def test_strength_is_rounded_with_the_latents():
    """Appended tokens carry `1 - strength` in the pipeline's dtype."""
    state = Keyframe(latent=latent(), frame_index=0, strength=0.9).apply(fresh(dtype="bfloat16"))
    assert state.mask[0, -1, 0] == np.float32(0.10009765625)
