"""Where and when: sizes, temporal windows, spatial tiles and addressed noise."""
