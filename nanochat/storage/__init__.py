"""The history's parts: what `history.py` is made of."""
