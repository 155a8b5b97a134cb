"""Data of the user's own in place of what heal brings or makes: prompts, contexts, pairs, completions."""
