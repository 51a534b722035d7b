"""Runs engines. Needs numpy, Pillow and what the engine's target runs on; never torch or onnx."""
