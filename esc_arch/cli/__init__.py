"""The `basicsr` command. Nothing here imports torch before a subcommand needs it."""

NO_BASICSR = "BasicSR is not installed here; this brings it: basicsr install-basicsr"


class PluginError(Exception):
    """A registered plugin, or BasicSR with it, cannot be imported. The message is one line."""
