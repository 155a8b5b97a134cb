"""Talking to a run: the chat itself (talk), and where it takes place: a terminal, a pipe, a page in the browser."""
