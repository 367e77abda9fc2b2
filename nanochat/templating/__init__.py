"""Chat templates: a sandbox with limits, what is structure and what is text, and where a model's reasoning is."""
