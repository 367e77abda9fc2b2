"""The benchmark's parts; `nanochat.bench` puts them together."""
