"""Developer's tools that refresh what is derived: API forms of the workflows, thumbnails, the README's picture."""
