"""The model families, and the fallback through Transformers."""
