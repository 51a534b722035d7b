"""The demo model: a small LlamaGen trained on drawn shapes, and a judge that reads them back."""

from pathlib import Path

FOLDER = Path(__file__).parent
DEMOS = {"demo": ("demo_gpt.safetensors", "demo_vq.safetensors")}  # name -> model, decoder
