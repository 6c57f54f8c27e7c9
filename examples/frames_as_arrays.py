"""Frames as numpy arrays, chunk by chunk while later ones decode, changed and written again."""

import numpy as np

import ltx2rt

with ltx2rt.DistilledPipeline(ltx2rt.open_bundle("ltx23.bundle")) as pipe:
    clip = pipe(prompt="A market in the morning.")
    chunks = []
    for chunk in clip.frames:  # uint8 [f, H, W, 3]
        grey = chunk.mean(axis=-1, keepdims=True).astype(np.uint8)
        chunks.append(np.repeat(grey, 3, axis=-1))
    sound = (clip.audio, clip.audio_sampling_rate)  # float32 [2, N]
    path = ltx2rt.video_file(chunks, clip.frame_rate, sound)
    print("black and white, without loss:", path)
    ltx2rt.join_clips([path, path], "twice.mp4")
