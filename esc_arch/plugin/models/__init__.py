"""The models that are registered with BasicSR: ESC's, Real-HAT's, and what makes any durable."""

# First, and whole: where a module in here were the one that imports it, as when a loading process
# unpickles a data set, it would be asked for its classes before it has them.
import basicsr  # noqa: F401
