"""Samples of an evaluation: how they are drawn, their file, and several of one question."""
