"""Whether a launch may go ahead: one verdict of many lines, each with its evidence.

- `settings`: what has to hold, in `launch.yaml`.
- `model`, `capacity`, `traffic`: evidence of the model's quality, of enough GPUs, and of load tests and fault drills.
- `evidence`: a line, and the verdict that follows from all.
- `run`: gathers the evidence in order; `page` shows it.

A line is a go only where it was shown. What could not be looked at is no reason to launch.
"""
