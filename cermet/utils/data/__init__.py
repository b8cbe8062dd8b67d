"""The names of torch.utils.data, from `cermet.data`."""

from cermet.data import *  # noqa: F403
from cermet.data import __all__ as __all__
