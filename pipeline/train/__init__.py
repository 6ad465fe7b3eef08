"""Trains the embedded teacher on generated scenes: first its autoencoder, then the transformer with its text encoder.

- `vae`: the autoencoder, from the weights that it starts at to those that are saved.
- `small_wan`: the teacher before it is trained; `teacher`: its training.
- `attention`, `half`, `muon`: what makes training fast on a CPU.
- `checkpoint`: training that goes on after an interrupt; `settings`: all settings, with their defaults.
"""
