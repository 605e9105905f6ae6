"""Optical flow: warping, consistency and estimation."""
