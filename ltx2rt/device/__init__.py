"""The GPU itself; nothing outside this folder knows the driver."""
