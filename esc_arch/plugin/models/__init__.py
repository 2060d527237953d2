"""The models that are registered with BasicSR: ESC's, Real-HAT's, and what makes any durable."""
