"""The smallest ESC that has all its parts: options for tests that need any network."""

TINY = {
    "type": "ESC",
    "dim": 16,
    "pdim": 4,
    "kernel_size": 5,
    "n_blocks": 1,
    "conv_blocks": 1,
    "window_size": 8,
    "num_heads": 2,
    "exp_ratio": 1.25,
    "upscaling_factor": 2,
}
