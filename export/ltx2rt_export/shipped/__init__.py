"""Graphs that this version of ltx2rt brings along: official models are built without PyTorch.

A graph depends on a model's configuration and on nothing that is in its weights. So the components
of the released models, and of the demo model, are exported once, by `make graphs`, and lie in
`shipped/graphs`, one file a component and configuration.
"""
