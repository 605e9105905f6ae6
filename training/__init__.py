"""Training of the built-in model. Imports the host-free core only; nothing here is needed to use the pack."""
