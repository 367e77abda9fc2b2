"""Tensor parallel: how a model is divided over ranks, the processes that run them, and what travels between them."""
