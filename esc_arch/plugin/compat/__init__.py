"""BasicSR 1.4.2 on today's libraries and without a GPU: one named patch a defect.

Each patch is a function of the module of BasicSR that it mends, listed in `registration.PATCHES`.
It tells its defect by a feature of what is installed, never by a version, leaves a BasicSR without
the defect (a fork, a git checkout) as it is, and may be applied any number of times. BasicSR's
functions are wrapped; where one must be replaced, the docstring says why.
"""
