"""Images, EXR, video and sound in and out; colour; all writes are atomic."""
