"""Everything between a download of pictures and an LMDB to train on.

Nothing here imports torch, which would take most of the memory and of the start-up time of the
preparation and of each of its processes.
"""
