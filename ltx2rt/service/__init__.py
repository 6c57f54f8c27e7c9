"""The one core behind every door: requests are read, queued, made by workers, and kept."""
