"""What looks at networks: complexity, speed, what they attend to, and the paper's tables."""
