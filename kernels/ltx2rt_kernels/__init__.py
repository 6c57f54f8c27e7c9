"""Custom operators: Triton to PTX and cubin, ONNX functions, TensorRT plugins."""
