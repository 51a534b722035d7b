"""Let the build choose the method of decoding, by trying them on this machine."""

from __future__ import annotations

from arcompile.errors import ArcError
from arcompile.pipeline import Pass, register


@register("auto")
class Auto(Pass):
    """Becomes the quickest of all methods that keep the law of images, or nothing.

    quality: `exact`, or a share of the judge's score without it, such as 0.98, which methods that
    change the law must keep. batch: guided images drawn at once, for which to choose. `arcompile
    build` decides; the engine tells from what.
    """

    keeps = "quality"
    quality: str = "exact"
    batch: int = 1

    def share(self) -> float:
        """Of the judge's score; 1 for exact methods only. Raises ArcError."""
        try:
            found = 1.0 if self.quality == "exact" else float(self.quality)
        except ValueError:
            found = 0.0
        if not 0 < found <= 1 or self.batch < 1:
            raise ArcError(f"pass auto takes quality=exact or a share up to 1, and a batch of 1 or "
                           f"more, not {self.quality} and {self.batch}")
        return found
