"""LoRA files: read, matched to a model, merged into its weights or into one another."""
