"""heal: turn activation steering into weights without the damage."""

__version__ = "0.3.0"
