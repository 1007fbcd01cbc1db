"""The episode as a generator, and the drivers that feed it replies."""
