"""From graphs to TensorRT and TensorRT-RTX engines, one process an engine."""
