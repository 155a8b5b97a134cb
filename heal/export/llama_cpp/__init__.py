"""Exports for llama.cpp and what is built on it: GGUF files of merged models, adapters and steering vectors."""
