"""Latency and memory of networks and training steps: what `basicsr bench` runs.

`jobs` has what can be measured, `contenders` the networks by name; `measure` times any jobs in turn
and takes the peak memory of each in a process of its own; `results` writes what came out.
"""
