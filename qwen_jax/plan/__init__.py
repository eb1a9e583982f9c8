"""Know before you pay: a training step compiled for chips that this machine does not have.

`topologies` names slices, `stages` makes the step of a stage, `program` compiles it, `hlo` reads
the compiled text and `network`, `products` and `costs` what it takes, `estimate` turns that into
time, and `search` looks for the best layout.
"""
