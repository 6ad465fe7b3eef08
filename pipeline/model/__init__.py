"""What a checkpoint is and how it is sampled: families, the denoising loop, guidance, schedulers.

- `animation`: `ImageAnimationPipeline`, a still picture and a prompt to a clip.
- `families`: what the checkpoints of each kind do differently.
- `guidance`: how the branches' predictions become one.
- `solver`: DPM-Solver++ on a grid uniform in log-SNR.
"""
