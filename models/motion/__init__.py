"""Optical flow and its estimators; propagation and guidance of a clip along it."""
