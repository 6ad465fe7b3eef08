"""From a checkpoint to a packaged model in the store."""
