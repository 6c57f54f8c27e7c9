"""The first node at which an engine differs from ONNX Runtime, and a graph that shows it alone."""
