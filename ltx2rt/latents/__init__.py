"""Latents as numbers: shapes, tokens, positions, masks, tiles."""
