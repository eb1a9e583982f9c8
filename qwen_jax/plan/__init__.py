"""Ahead-of-time planner: compiles a training step for chips that this machine does not have.

`topologies` defines TPU slices, `stages` builds the step of a training stage, and `program`
compiles it. `hlo` parses the compiled text; `network`, `matmuls` and `costs` compute its costs.
`estimate` turns costs into time, and `search` selects the layouts to compile.
"""
