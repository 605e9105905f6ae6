"""What happens to frames: colour, degradation, codecs and measures."""
