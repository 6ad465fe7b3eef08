"""Policies that meet a goal: thresholds, backoff, attempts and delay, searched for on the simulator.

- `goal`: what is to be met, and how far what a policy did is from it; the seam to fleets, simulated or real.
- `search`: the numbers that are tried, and differential evolution over them.
- `report`: what was tried, and whether a real fleet agrees.
"""
