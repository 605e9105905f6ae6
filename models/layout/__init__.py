"""Where and when: sizes; windows, tiles and spans; addressed noise; the plan of a run."""
