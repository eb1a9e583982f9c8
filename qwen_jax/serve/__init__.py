"""An HTTP server that speaks OpenAI's API, in front of one generation engine.

calls (a request's JSON -> what the engine is asked), worker (the engine's thread), answers (its
events -> JSON), app (the routes), run (a port, and a clean end).
"""
