"""What a generation made: clips, what they say about themselves, and stages kept for `--resume`."""
