"""Distillation: many guided steps of a teacher into few unguided ones of a student.

- `algorithm`: the mathematics, apart from any model and any loop.
- `data`: pictures, captions and clips to train on.
- `encoded`: captions and pictures of a folder, encoded once.
- `student`: what a student consists of.
- `passes`: how teacher and student are conditioned on a batch, and called.
- `settings`: how it is trained.
- `objective`: the loss of one batch.
- `trainer`: the loop, on accelerate; `processes`: those that train together.
- `checkpoint`: what a run goes on from, and how it is replaced.
"""
