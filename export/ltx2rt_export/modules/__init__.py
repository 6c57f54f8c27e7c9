"""Our PyTorch of every component: official names, export friendly, the reference of comparisons."""
