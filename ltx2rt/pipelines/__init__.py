"""Pipelines: a request is checked, run stage by stage, and becomes a clip."""
