"""An HTTP server that speaks OpenAI's API, in front of one generation engine.

calls (a request's JSON -> what the engine is asked), worker (the engine's thread), answers (its
events -> JSON), app (the routes), address (host, port and key), run (all of it, until a signal).
"""
