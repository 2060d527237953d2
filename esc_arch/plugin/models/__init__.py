"""Models that are registered with BasicSR, a discriminator, and what makes any model durable."""

# First, and whole: where a module in here were the one that imports it, as when a loading process
# unpickles a data set, it would be asked for its classes before it has them.
import basicsr  # noqa: F401
