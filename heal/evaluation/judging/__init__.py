"""An LLM as a judge of answers, behind an OpenAI-compatible server: scores of 0 to 100 beside heal's own readouts."""
