"""What happens to frames: colour, degradation, compression, measures and charts."""
