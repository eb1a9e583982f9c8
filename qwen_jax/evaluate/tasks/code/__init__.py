"""Code tasks in six languages, and code tasks of chat models. Report: 3.3, 4.3."""
