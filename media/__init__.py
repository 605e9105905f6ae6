"""Films and pictures in and out without a host: times, colour, depth, transparency, sound (PyAV, numpy, Pillow).

1. files.py     names: what is a picture, what would overwrite its own source, short temporary names
2. timeline.py  what a source is: the time of every frame, its shape, colour, depth (clock.py: joined recordings)
3. reader.py    its frames, upright RGB or RGBA, one at a time (pictures.py: the part for pictures)
4. tracks.py    its sound, subtitles, chapters and names, moved to the clock of the result (sound.py: as samples)
5. writer.py    the result, whole or not at all
"""
