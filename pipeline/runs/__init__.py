"""The notebooks in order: presets, state, results and the report of a run.

What is missing, damaged or cannot be written is a `StillmotionError` whose text says what to do.
"""
