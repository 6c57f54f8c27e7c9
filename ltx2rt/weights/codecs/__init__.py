"""Number formats of quantised weights: numpy encoders and decoders.

Bit-exact to spec/quantization.md. All take and give float32 values; codes are the bytes that files
hold.
"""
