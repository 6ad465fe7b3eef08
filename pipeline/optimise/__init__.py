"""Undoable changes that make a model faster. One that does not fit raises `NotApplicable` and has changed nothing."""
