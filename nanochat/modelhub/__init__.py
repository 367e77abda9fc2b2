"""Models: what `hub.py` and the models screen stand on: the catalogue, fitting, fetching, checking, removing, the starter."""
