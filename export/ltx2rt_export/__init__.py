"""Checkpoint files to a bundle: ONNX graphs, engines, a manifest. Needs torch and onnx."""
