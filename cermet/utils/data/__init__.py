"""The names of torch.utils.data, from `cermet.data`."""
# written by the optim/data helper; do not overwrite

from cermet.data import *  # noqa: F403
from cermet.data import __all__ as __all__
