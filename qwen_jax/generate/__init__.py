"""Text out of a model: choosing tokens (sample) and decoding over a KV cache (decode)."""
