"""Safetensors files in and out, short floats, and the codecs of quantised weights."""
