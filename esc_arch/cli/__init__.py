"""The `basicsr` command. Nothing here imports torch before a subcommand needs it."""


class PluginError(Exception):
    """A registered plugin, or BasicSR with it, cannot be imported. The message is one line."""
