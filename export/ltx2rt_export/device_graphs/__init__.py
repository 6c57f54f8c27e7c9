"""Small graphs without weights, for arithmetic that stands beside the model's components."""
