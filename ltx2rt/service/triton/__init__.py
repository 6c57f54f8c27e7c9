"""The Triton door: models of its Python backend, and the repository that they lie in."""
