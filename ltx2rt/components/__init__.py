"""What gives engines their meaning: thin classes, one a part of the model."""
