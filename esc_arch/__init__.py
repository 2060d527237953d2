"""ESC super-resolution networks (ICCV 2025), by themselves and as a BasicSR plugin.

Importing this package costs nothing: not even torch is imported. Networks, models and data sets are
registered with BasicSR when BasicSR is imported, before or after.
"""

from esc_arch.plugin.registration import watch_for_basicsr

watch_for_basicsr()
