"""Latency, memory and exactness of networks and attention backends: what `basicsr bench` runs.

`jobs` has what can be measured, `contenders` the networks by name; `measure` times any jobs in turn
and takes the peak memory of each in a process of its own; `report` writes what came out.
`exactness` compares every backend with float64.
"""
