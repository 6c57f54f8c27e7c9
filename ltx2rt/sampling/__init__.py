"""Noise, sigma schedules, samplers and guiders: pure functions on numpy arrays."""
