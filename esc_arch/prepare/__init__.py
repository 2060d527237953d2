"""Preparing super-resolution data, without torch.

A package of its own, beside `esc_arch`, because importing anything below that imports torch, which
would take most of the memory and the start-up time of the preparation and of each of its processes.
"""
