"""All that knows BasicSR: registration, compatibility, models, data sets, checks, training."""
