"""Optimisers that maximise reward close to an anchor."""
