"""The model hub: names in place of paths, and the files that are fetched from it when asked for."""
