"""A finished run, or any model -> ONNX -> probabilities. Needs the extra `serving`; raw rows also need `data`."""
