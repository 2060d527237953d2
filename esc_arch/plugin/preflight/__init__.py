"""All that is wrong with an option file, found before anything is created.

Which keys are right is not listed here. BasicSR and its plugins read options by key, so the keys
that a model, data set or the training loop knows are found in their source (`source`), and the
keywords of networks, losses, metrics, optimizers and schedulers in their signatures. What is listed
is what no source tells: the types and ranges of BasicSR's own options.

A key that nobody reads is an error

- where it would be handed on as a keyword that does not exist: training would stop there;
- elsewhere, and under `**kwargs`, only if it is close to a key that the section's reader knows and
  no other registered class reads it: BasicSR would silently ignore it. Other unread keys pass, for
  BasicSR's own option files have some (`use_shuffle`).

Errors name options as `--force_yml` does, `train:optim_g:lr`.
"""

from esc_arch.plugin.preflight.check import check_options

__all__ = ["check_options"]
