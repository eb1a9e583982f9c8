"""An OpenAI-compatible HTTP server for one generation engine.

protocol (a request's JSON -> engine requests), worker (the engine's thread), responses (engine
events -> JSON), app (the routes), address (host, port and key), run (serve until a signal).
"""
