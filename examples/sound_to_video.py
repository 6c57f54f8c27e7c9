"""A picture that follows a sound, as long as the sound; here one that is made in memory."""

import numpy as np

import ltx2rt

RATE = 48_000
time = np.arange(RATE // 2) / RATE
bell = (np.sin(2 * np.pi * 660 * time) * np.exp(-4 * time)).astype(np.float32)
with ltx2rt.DistilledPipeline(ltx2rt.open_bundle("ltx23.bundle")) as pipe:
    pipe(prompt="A bell is struck.", audio=(np.stack([bell, bell]), RATE)).save("bell.mp4")
