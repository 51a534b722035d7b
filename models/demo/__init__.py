"""The demo model: a small LlamaGen trained on drawn shapes, and a judge that reads them back."""
