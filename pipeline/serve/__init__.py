"""A packaged model: its manifest, its digests, where it is kept, and the engine that runs it."""
