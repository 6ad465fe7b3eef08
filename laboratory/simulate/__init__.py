"""A fleet in a computer: jobs, GPU servers, retries and the control loop, event by event.

- `scenario`: what is asked, with the files that it names; `demand`, `arrivals`: rates and times of requests.
- `state`, `events`, `loop`: the compiled part; `compiled` is its seam to numba.
- `build`, `run`, `control_adapter`: from the scenario to the loop, and what happens between two calls of it.
- `results`: what came of it.
"""
