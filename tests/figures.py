"""Drawing takes most of the time of a tiny run, and hundreds of tests make one. Only tests of figures draw them."""

from matplotlib.figure import Figure

_savefig = Figure.savefig
_drawing = False


def draw(wanted: bool) -> None:
    """Figures are drawn, or saved as a dot, from here on in this process."""
    global _drawing
    _drawing = wanted


def _saved(self, path, *args, **kwargs):
    if not _drawing:
        self.clear()
        self.set_layout_engine("none")
        self.set_size_inches(0.1, 0.1)
    return _savefig(self, path, *args, **kwargs)


Figure.savefig = _saved
