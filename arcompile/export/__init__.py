"""torch.export -> Graph. Needs torch."""

from arcompile.export.graph import Entry, call, export

__all__ = ["Entry", "call", "export"]
