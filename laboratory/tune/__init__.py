"""Policies that meet a goal: thresholds, backoff, attempts and delay, searched for on the simulator.

- `goal`: what is to be met, and what counts then, as a file has it.
- `space`: the numbers that are tried, and the fleet that each set of them makes.
- `figures`: what a policy did in a scenario, and how far that is from the goal; the seam to fleets, simulated or real.
- `search`: differential evolution over the space; `report`, `plots`: what was tried.
"""
