"""Thin ComfyUI nodes (API V3) over the host-free core in `models/`."""
