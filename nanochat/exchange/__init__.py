"""Chats on their way out of nanochat and into it: our JSON and Markdown, ChatGPT's export, llm's database."""
