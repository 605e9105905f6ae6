"""Training of the built-in model and of adapters. Imports the host-free core only; using the pack needs none of it."""
