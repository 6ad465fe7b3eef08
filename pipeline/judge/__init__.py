"""Whether a model is good: motion, fidelity and the gates of a student."""
