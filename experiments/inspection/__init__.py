"""The parts of `experiments.inspect`: what is measured, and how it is shown."""
