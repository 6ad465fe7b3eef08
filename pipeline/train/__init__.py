"""Trains the embedded teacher on generated clips: first its autoencoder, then the U-Net with its encoders.

- `vae`, `teacher`: what is trained, how, and with which settings.
- `linear_start`: the weights that training starts from.
- `text`: tokenizer and encoders, built without any download.
- `stream`: training data, made in a process of its own.
- `checkpoint`: training that goes on after an interrupt.
"""
