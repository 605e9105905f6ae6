"""Host-free core of the pack: networks, layout, pixels and motion; imports nothing of the host."""
