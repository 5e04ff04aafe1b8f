"""Examples: the numbered ones are scripts, each of them a program; ``shop`` is a small service."""
