"""Ways to make a checkpoint fast; see the modules."""
