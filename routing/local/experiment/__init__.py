"""The experiment: retry policies on real Envoys, beside what queueing theory allows.

- `cases`: the policies that are compared.
- `one_tier`: edges that pick GPU servers themselves, for comparison with two tiers.
- `measure`: runs the fleets and counts; `results` makes the table, the plot and the JSON.
"""
