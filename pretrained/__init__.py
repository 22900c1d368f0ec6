"""Hugging Face weights and tokenizers, in and out."""
