"""Tokens in, tokens out: the inference engine. It knows nothing of chats, of our files, or of the screen."""
