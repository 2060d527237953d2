"""What looks at networks: complexity, analysis, the tables of the paper, benchmarks, plots."""
