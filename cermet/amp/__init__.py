"""Mixed precision training: `autocast` and `GradScaler`, as in ``torch.amp``."""

from cermet.amp.custom import custom_bwd, custom_fwd
from cermet.amp.grad_scaler import GradScaler
from cermet.frontend.autocast import autocast, is_autocast_available

__all__ = ["GradScaler", "autocast", "custom_bwd", "custom_fwd", "is_autocast_available"]
