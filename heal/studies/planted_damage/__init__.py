"""Planted damage: which coherence signal notices what, and from which size on."""
