"""What a checkpoint is and how it is sampled: families, the denoising loop, guidance, schedulers.

- `animation`: `ImageAnimationPipeline`, a still picture and a prompt to a clip; `family_pipeline`: how it is loaded.
- `families`: what the checkpoints of each kind do differently; `sampling`: the loop that they share.
- `guidance`: how the branches' predictions become one; `prompts`: what the text encoder reads.
- `solver`: DPM-Solver++ on a grid uniform in log-SNR.
"""
