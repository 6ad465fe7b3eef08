"""The notebooks in order: presets, state, results and the report of a run."""
