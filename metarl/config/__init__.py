"""Settings: which values they may take, those of the outer loop, and how they are read from files."""

from metarl.config.reading import from_dict, missing_settings, warn_of_defaults
from metarl.config.settings import Device, check_settings
from metarl.config.train import TrainConfig, choose_device, fixed_settings, require_kept, run_config

__all__ = [
    "Device",
    "TrainConfig",
    "check_settings",
    "choose_device",
    "fixed_settings",
    "from_dict",
    "missing_settings",
    "require_kept",
    "run_config",
    "warn_of_defaults",
]
