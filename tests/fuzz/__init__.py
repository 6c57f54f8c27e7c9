"""Hostile files and texts: refused in one sentence, whatever is in them."""
