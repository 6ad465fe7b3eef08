"""A fleet in a computer: jobs, GPU servers, retries and the control loop, event by event.

- `scenario`, `experiment`: what is asked, as a file has it; `service`, `demand`: its distributions.
- `state`, `draws`, `calendar`, `streams`, `choosing`, `loop`: the compiled part; `compiled` is its seam to numba.
- `build`, `run`, `control_adapter`: from the scenario to the loop, and what happens between two calls of it.
- `results`, `plots`: what came of it.
"""
