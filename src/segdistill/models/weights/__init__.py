"""Weights files: what is read from them, and under which names."""
