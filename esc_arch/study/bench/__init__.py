"""Measures networks, training steps and attention backends: what `basicsr bench` runs.

A thing to measure is a job (`measure.Job`): it builds what it needs and hands back a function to
time. `measure.measure` times any jobs in turn in one process and takes the peak memory of each in a
process of its own; `report` writes what came out.
"""
