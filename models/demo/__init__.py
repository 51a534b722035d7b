"""The demo models: small generators of drawn shapes in published layouts, and a judge of them."""

from pathlib import Path

FOLDER = Path(__file__).parent
DEMOS = {  # name -> model, decoder
    "demo": ("demo_gpt.safetensors", "demo_vq.safetensors"),
    "demo-var": ("demo_var.safetensors", "demo_var_vq.safetensors"),
    "demo-var-small": ("demo_var_small.safetensors", "demo_var_vq.safetensors"),
    "demo-mar": ("demo_mar.safetensors", "demo_mar_kl.safetensors"),
    "demo-shuffle": ("demo_shuffle.safetensors", "demo_shuffle_vq.safetensors"),
}
