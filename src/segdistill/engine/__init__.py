"""Training and evaluation. The whole data flow is in `loop.py`."""
